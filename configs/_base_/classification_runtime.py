# MMPretrain's default runtime. Only the last checkpoint is kept, because runs take hundreds of epochs.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))

# MMPretrain's runtime; one checkpoint is kept, for runs have hundreds of epochs.
_base_ = 'mmpretrain::_base_/default_runtime.py'
custom_imports = dict(imports=['mmkd'], allow_failed_imports=False)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))

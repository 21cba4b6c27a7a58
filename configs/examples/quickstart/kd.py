# The quickstart's student with KD.
_base_ = '../../_base_/pairs/digits_quickstart.py'

model = dict(methods=dict(kd=dict(type='mmkd.KD', temperature=1.0, weight=1.0)))

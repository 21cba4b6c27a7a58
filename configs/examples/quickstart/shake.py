# The quickstart's student with SHAKE.
_base_ = '../../_base_/pairs/digits_quickstart.py'

model = dict(methods=dict(shake=dict(type='mmkd.SHAKE', temperature=1.0, weight=1.0)))

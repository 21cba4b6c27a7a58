# The Faster R-CNN teacher of the method comparison: the quickstart's teacher.
_base_ = '../quickstart/teacher.py'

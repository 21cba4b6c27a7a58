_base_ = '../quickstart/teacher.py'

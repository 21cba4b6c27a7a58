_base_ = '../quickstart/student.py'

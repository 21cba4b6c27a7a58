# The RetinaNet student of ../digits_few, with a teacher that is wrong about half of the digits.
_base_ = '../digits_few/retinanet_student.py'

teacher = dict(
    config='mmkd::examples/wrong_labels/retinanet_teacher.py',
    checkpoint='work_dirs/wrong_labels/retinanet/teacher/epoch_8.pth')

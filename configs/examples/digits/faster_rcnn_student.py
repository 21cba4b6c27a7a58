# The Faster R-CNN student of the method comparison: the quickstart's student.
_base_ = '../quickstart/student.py'

teacher = dict(
    config='mmkd::examples/digits/faster_rcnn_teacher.py',
    checkpoint='work_dirs/compare_methods/faster_rcnn/teacher/epoch_8.pth')
# Settings for tools/analysis_tools/compare_methods.py, chosen with KD on seeds 100 and 101
# (docs/benchmarks/quickstart.md, docs/benchmarks/sample_weight.md).
comparison = dict(proxies=dict(temperature=1.0, weight=1.0), dml=dict(temperature=1.0))

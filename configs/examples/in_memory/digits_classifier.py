# The quickstart's classifier with all images in memory and with random crops, see docs/speed_data.md.
_base_ = '../quickstart/classifier_student.py'

train_dataloader = dict(
    num_workers=0,
    sampler=dict(type='mmkd.ViewSampler'),
    collate_fn=dict(type='mmkd.as_batch'),
    dataset=dict(
        _delete_=True,
        type='mmkd.ResidentDataset',
        dataset=_base_.train_dataloader.dataset,
        crop=16,
        padding=2))

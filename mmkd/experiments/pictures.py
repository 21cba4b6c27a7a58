"""Pictures of a comparison: learning curves, and detections beside the ground truth."""
import contextlib
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ..config_files import read_config
from .method_names import method_title
from .runs import SCORES, TrainingLog, metrics, score

GREEN, RED = (60, 170, 60), (215, 40, 40)


def plot_curves(path: Path, logs: dict[str, list[TrainingLog]]) -> None:
    """Plot the student's task loss and its score on val during training, as means over the seeds.

    Args:
        path: Picture to write.
        logs: Logs by method, one for each seed.
    """
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for method, of_method in logs.items():
        style = dict(color='0.45' if method == 'student' else None, label=method_title(method), marker='o',
                     markersize=3)
        left.plot(*mean_curve([log.train for log in of_method], task_loss), **style)
        right.plot(*mean_curve([log.val for log in of_method],
                               lambda record: 100 * score(metrics(record))[1]), **style)
        name, _ = score(metrics(next(iter(of_method[0].val.values()))))
        right.set_ylabel(f'{SCORES[name]} on val')
    left.set(xlabel='iteration', ylabel="student's task loss")
    right.set(xlabel='epoch')
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def task_loss(record: dict) -> float:
    """Return the student's task loss, which all methods share, from a training record of MMEngine's log."""
    losses = [value for key, value in record.items() if key.startswith('loss_') and key != 'loss_waiting']
    return sum(losses) if losses else record['loss']  # a classifier that is trained alone logs the sum only


def mean_curve(logs: Sequence[dict[int, dict]],
               value: Callable[[dict], float]) -> tuple[list[int], list[float]]:
    """Return the steps that all logs have, and the means of a value there."""
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    return steps, [statistics.mean(value(log[step]) for log in logs) for step in steps]


def draw_detections(path: Path, detectors: Iterable[tuple[str, str, Path]], cfg_options: dict,
                    num_images: int = 4, score_thr: float = 0.5) -> None:
    """Draw the first val images, a row each: the ground truth, and the detections of every detector.

    Detections are green if :func:`is_correct`, and red otherwise.

    Args:
        path: Picture to write.
        detectors: Title, config file and checkpoint for every column.
        cfg_options: Config options of all configs, by dotted keys.
        num_images: Number of images.
        score_thr: Detections with a lower score are not drawn.
    """
    detectors = list(detectors)
    cfg = read_config(detectors[0][1])
    cfg.merge_from_dict(cfg_options)
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    infos = [dataset.get_data_info(index) for index in range(min(num_images, len(dataset)))]
    files = [info['img_path'] for info in infos]
    truths = [_ground_truth(info) for info in infos]
    columns = {'ground truth': truths}
    for title, config, checkpoint in detectors:
        # Loading a checkpoint lists the keys that only resuming needs, which reads like a failure.
        with contextlib.redirect_stdout(io.StringIO()):
            model = init_detector(
                read_config(str(config)), str(checkpoint), device='cpu', cfg_options=cfg_options)
        results = [result.pred_instances for result in inference_detector(model, files)]
        columns[title] = [instances[instances.scores >= score_thr] for instances in results]
    images = [mmcv.imread(file, channel_order='rgb') for file in files]
    height, width = (max(image.shape[side] for image in images) for side in (0, 1))
    grid = []
    for title, rows in columns.items():
        column = [_title_bar(title, width)]
        for image, instances, truth in zip(images, rows, truths, strict=True):
            drawn = _draw(image, instances, is_correct(instances, truth), dataset.metainfo['classes'])
            column.append(mmcv.impad(drawn, shape=(height + 4, width + 4), pad_val=(255, 255, 255)))
        grid.append(np.concatenate(column))
    mmcv.imwrite(np.concatenate(grid, axis=1)[..., ::-1], str(path))


def is_correct(detections: InstanceData, truth: InstanceData) -> torch.Tensor:
    """Return for every detection whether it has the class of a true box with an IoU of at least 0.5.

    Args:
        detections: ``bboxes`` of shape ``(N, 4)`` as x1, y1, x2, y2 in pixels, and ``labels`` ``(N, )``.
        truth: ``bboxes`` of shape ``(M, 4)`` and ``labels`` ``(M, )``.

    Returns:
        Tensor: Of shape ``(N, )`` and type bool.
    """
    overlaps = bbox_overlaps(detections.bboxes, truth.bboxes)
    same_class = detections.labels[:, None] == truth.labels
    return ((overlaps >= 0.5) & same_class).any(dim=1)


def _ground_truth(info: dict) -> InstanceData:
    instances = info['instances']
    return InstanceData(
        bboxes=torch.tensor([instance['bbox'] for instance in instances], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([instance['bbox_label'] for instance in instances], dtype=torch.long))


def _draw(image: np.ndarray, instances: InstanceData, correct: torch.Tensor,
          classes: Sequence[str]) -> np.ndarray:
    for color, chosen in ((RED, ~correct), (GREEN, correct)):
        visualizer = DetLocalVisualizer(bbox_color=color, line_width=1)
        visualizer.dataset_meta = dict(classes=classes)
        shown = InstanceData(bboxes=instances.bboxes[chosen], labels=instances.labels[chosen])
        visualizer.add_datasample('image', image, DetDataSample(gt_instances=shown), draw_pred=False)
        image = visualizer.get_image()
    return image


def _title_bar(title: str, width: int) -> np.ndarray:
    bar = np.full((24, width + 4, 3), 255, dtype=np.uint8)
    return cv2.putText(bar, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)

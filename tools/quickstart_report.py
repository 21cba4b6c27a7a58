"""What the quickstart shows: the logs of its trainings as a summary, a table and two pictures."""

import contextlib
import io
import json
import statistics
from pathlib import Path

METHODS = ('student', 'kd', 'shake')
TITLES = dict(teacher='teacher', student='student alone', kd='KD', shake='SHAKE')
PAIRS = (('kd', 'student'), ('shake', 'student'), ('shake', 'kd'))
COLOURS = dict(student='0.45', kd='tab:orange', shake='tab:blue')
# What counts, by the name that MMDetection and MMPretrain give it.
SCORES = dict(bbox_mAP='AP', top1='top-1')
# A teacher less far ahead has too little to teach, and the comparison says nothing.
MIN_TEACHER_LEAD = dict(bbox_mAP=0.10, top1=0.05)


def read_log(work_dir):
    """Read what MMEngine logged in a work directory, over all interrupted and resumed runs.

    Args:
        work_dir (str or Path): Work directory of one training.

    Returns:
        tuple[dict, dict]: Training records by iteration and validation records by epoch.
    """
    train, val = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a run that was killed, or is still being written
                continue
            if 'coco/bbox_mAP' in record or 'accuracy/top1' in record:
                val[record['step']] = record
            elif 'loss' in record:
                train[record['step']] = record
    return train, val


def metrics(record):
    """Pick the metrics of a validation record.

    Args:
        record (dict): Metrics as MMEngine logs them, keyed ``coco/bbox_…`` or ``accuracy/…`` (in per cent).

    Returns:
        dict[str, float]: Metrics on the 0 to 1 scale, keyed ``bbox_…`` and ``top…``.
    """
    boxes = {key.removeprefix('coco/'): value for key, value in record.items() if key.startswith('coco/')}
    return {**boxes, **{key.removeprefix('accuracy/'): value / 100
                        for key, value in record.items() if key.startswith('accuracy/')}}


def score(metrics):
    """Return the name and value of the metric that counts, as of :func:`metrics`."""
    return next((name, metrics[name]) for name in SCORES if name in metrics)


def summarize(results, seeds, settings):
    """Sum up all runs.

    Args:
        results (dict): Metrics of the ``teacher``, and for every method a list, one a seed.
        seeds (list[int]): The seeds, in the order of those lists.
        settings (dict): How the runs were made; passed on as it is.

    Returns:
        dict: Content of ``summary.json``; metrics on the 0 to 1 scale.
    """
    summary = dict(teacher=results['teacher'])
    per_seed = {}
    for method in METHODS:
        per_seed[method] = [metrics['bbox_mAP'] for metrics in results[method]]
        summary[method] = dict(
            bbox_mAP=statistics.mean(per_seed[method]),
            bbox_mAP_std=spread(per_seed[method]),
            bbox_mAP_50=statistics.mean(metrics['bbox_mAP_50'] for metrics in results[method]),
            per_seed=per_seed[method])
    summary['paired_differences'] = {
        f'{one}-{other}': paired_difference(per_seed[one], per_seed[other]) for one, other in PAIRS}
    return dict(summary, seeds=list(seeds), settings=settings)


def paired_difference(ones, others):
    """Compare two methods seed by seed.

    Args:
        ones (list[float]): Results of one method.
        others (list[float]): Results of the other, with the same seeds.

    Returns:
        dict: ``mean``, ``std`` (n - 1), ``ci95`` (Student's t) and ``per_seed``; ``std`` and
        ``ci95`` are None for a single seed, which says nothing about the spread.
    """
    differences = [one - other for one, other in zip(ones, others, strict=True)]
    mean, std = statistics.mean(differences), spread(differences)
    ci95 = None
    if std is not None:
        from scipy.stats import t
        n = len(differences)
        half = float(t.ppf(0.975, n - 1)) * std / n**0.5
        ci95 = [mean - half, mean + half]
    return dict(mean=mean, std=std, ci95=ci95, per_seed=differences)


def spread(values):
    """Return the standard deviation (n - 1), or None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def format_table(summary):
    """Lay out the summary for the terminal, in AP points.

    Args:
        summary (dict): As of :func:`summarize`.

    Returns:
        str: The table.
    """
    number = len(summary['seeds'])
    width = 5 if number == 1 else 12
    lines = [f'{"":14} {"AP":>{width}} {"AP50":>6}']
    for name in ('teacher', *METHODS):
        row = summary[name]
        std = row.get('bbox_mAP_std')
        ap = f'{100 * row["bbox_mAP"]:.1f}' + ('' if std is None else f' ± {100 * std:4.1f}')
        lines.append(f'{TITLES[name]:14} {ap:>{width}} '
                     f'{100 * row["bbox_mAP_50"]:6.1f}')
    if number > 1:
        lines.append(f'(mean ± standard deviation over {number} seeds)')
    lines.append('')
    for one, other in PAIRS:
        pair = summary['paired_differences'][f'{one}-{other}']
        line = f'{TITLES[one] + " − " + TITLES[other]:21} {100 * pair["mean"]:+5.1f} AP'
        if pair['ci95']:
            low, high = pair['ci95']
            line += f'   95 % interval {100 * low:+.1f} to {100 * high:+.1f}'
        lines.append(line)
    lead = summary['teacher']['bbox_mAP'] - summary['student']['bbox_mAP']
    if lead < MIN_TEACHER_LEAD['bbox_mAP']:
        lines.append(f'\nThe teacher is only {100 * lead:.1f} AP ahead of the student alone: '
                     'too little for the comparison to say anything.')
    return '\n'.join(lines)


def plot_curves(path, work_dirs):
    """Plot the student's own loss and the AP on val over training, as means over the seeds.

    Args:
        path (str or Path): Picture to write.
        work_dirs (dict[str, list]): Work directories of every method, one a seed.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout='constrained')
    for method, folders in work_dirs.items():
        logs = [read_log(folder) for folder in folders]
        style = dict(color=COLOURS[method], label=TITLES[method], marker='o', markersize=3)
        left.plot(*_mean_curve([train for train, _ in logs], detection_loss), **style)
        epochs, aps = _mean_curve([val for _, val in logs], lambda record: record['coco/bbox_mAP'])
        right.plot(epochs, [100 * ap for ap in aps], **style)
    left.set(xlabel='iteration', ylabel="student's own loss (all detection terms)")
    right.set(xlabel='epoch', ylabel='AP on val')
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def detection_loss(record):
    """Add up the detector's own losses, which all methods share, without the distilling ones.

    Args:
        record (dict): One training record of MMEngine's log.

    Returns:
        float: Their sum.
    """
    return sum(value for key, value in record.items() if key.startswith('loss_'))


def _mean_curve(logs, value):
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    return steps, [statistics.mean(value(log[step]) for log in logs) for step in steps]


def plot_detections(path, data, detectors, cfg_options, num_images=4, score_thr=0.5):
    """Draw the first val images: truth, and what every detector finds.

    Args:
        path (str or Path): Picture to write.
        data (Path): The digits detection set.
        detectors (list[tuple]): For every column its title, config and checkpoint.
        cfg_options (dict): Options for all configs.
        num_images (int): Number of images, one a row.
        score_thr (float): Detections below this score are not drawn.
    """
    plt = _pyplot()
    images, truths = _val_images(data, num_images)
    columns = {'truth': truths}
    for title, config, checkpoint in detectors:
        # Loading lists the keys that only resuming needs, which reads like a failure.
        with contextlib.redirect_stdout(io.StringIO()):
            columns[title] = _detect(config, checkpoint, cfg_options, images, score_thr)
    figure, grid = plt.subplots(
        num_images, len(columns), squeeze=False, layout='constrained',
        figsize=(2.6 * len(columns), 2.6 * num_images + 0.5))
    for column, (title, found) in enumerate(columns.items()):
        grid[0, column].set_title(title)
        for row, image in enumerate(images):
            axes = grid[row, column]
            axes.imshow(plt.imread(image), interpolation='nearest')
            axes.set_axis_off()
            for box in found[row]:
                # Labels of wrong ones go to another corner, so that none hides another.
                if is_right(box, truths[row]):
                    _draw(axes, box, 'lime' if column else 'white')
                else:
                    _draw(axes, box, 'red', label_below=True)
    figure.supxlabel(f'green: right digit in the right place; red: not (score ≥ {score_thr})')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def is_right(detection, truths):
    """Tell whether a detection has the digit and, by IoU ≥ 0.5, the place of a true box.

    Args:
        detection (tuple): Label, then x1, y1, x2, y2.
        truths (list[tuple]): True boxes in the same form.

    Returns:
        bool: Whether one of them fits.
    """
    label, x1, y1, x2, y2 = detection
    for true_label, a1, b1, a2, b2 in truths:
        inter = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
        union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter
        if label == true_label and inter >= 0.5 * union:
            return True
    return False


def _draw(axes, box, color, label_below=False):
    from matplotlib.patches import Rectangle
    label, x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.2))
    # At the edge of the image the label goes into the box, or it would be cut off.
    if label_below:
        place = dict(x=x2, y=min(y2, 151), va='top', ha='right')
    else:
        place = dict(x=x1, y=max(y1, 8), va='bottom', ha='left')
    axes.text(s=label, color='black', fontsize=8, **place,
              bbox=dict(facecolor=color, edgecolor='none', pad=0.8))


def _val_images(data, num_images):
    content = json.loads((data / 'annotations/instances_val.json').read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    images, truths = [], []
    for image in content['images'][:num_images]:
        images.append(str(data / 'val' / image['file_name']))
        boxes = [(names[a['category_id']], *a['bbox']) for a in content['annotations']
                 if a['image_id'] == image['id']]
        truths.append([(name, x, y, x + w, y + h) for name, x, y, w, h in boxes])
    return images, truths


def _detect(config, checkpoint, cfg_options, images, score_thr):
    from mmdet.apis import inference_detector, init_detector
    model = init_detector(config, str(checkpoint), device='cpu', cfg_options=cfg_options)
    classes = model.dataset_meta['classes']
    found = []
    for result in inference_detector(model, images):
        instances = result.pred_instances
        kept = instances[instances.scores >= score_thr]
        pairs = zip(kept.labels.tolist(), kept.bboxes.tolist(), strict=True)
        found.append([(classes[label], *box) for label, box in pairs])
    return found


def _pyplot():
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    return plt

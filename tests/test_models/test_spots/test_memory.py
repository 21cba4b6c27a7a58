"""The encoder memory of query-based detectors as feature maps."""
import pytest
import torch

from mmkd.errors import MMKDError
from mmkd.models.spots import probe, record, resolve_spot
from mmkd.models.spots.memory import feature_levels, memory_maps
from mmkd.models.spots.queries import blank_samples
from tests.helpers.families import detector
from tests.helpers.queries import query_detector
from tests.helpers.tiny import build


@pytest.mark.parametrize('family', ['detr', 'deformable', 'dino'])
def test_maps_hold_the_encoders_tokens(family):
    model = build(query_detector(family)).eval()
    point = resolve_spot(model, 'memory', 'student')
    images = torch.randn(2, 3, 96, 160)
    samples = blank_samples(images, [(96, 160), (70, 130)])
    with torch.no_grad():
        recorded = record(model, dict(memory=point), images, data_samples=samples)
        maps = feature_levels('memory', recorded['memory'])
        features = model.extract_feat(images)
        memory = model.forward_encoder(**model.pre_transformer(features, samples)[0])['memory']
    assert [level.shape for level in maps] == [level.shape for level in features]
    torch.testing.assert_close(torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2), memory)


def test_tokens_are_in_rows():
    tokens = torch.arange(2 * 14 * 3.0).view(2, 14, 3)
    first, second = memory_maps([torch.zeros(2, 1, 2, 5), torch.zeros(2, 1, 4, 1)], tokens)
    assert first.shape == (2, 3, 2, 5) and second.shape == (2, 3, 4, 1)
    assert torch.equal(first[1, :, 1, 2], tokens[1, 7])
    assert torch.equal(second[0, :, 3, 0], tokens[0, 13])


def test_a_detector_of_one_level_reads_the_last():
    (level, ) = memory_maps([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], torch.zeros(1, 16, 3))
    assert level.shape == (1, 3, 4, 4)


def test_only_query_based_detectors_have_a_memory():
    model = build(detector('retinanet'))
    with pytest.raises(MMKDError, match="The teacher RetinaNet has no spot 'memory': it has no encoder"):
        probe(model, dict(memory=resolve_spot(model, 'memory', 'teacher')))

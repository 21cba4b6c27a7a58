"""What MMEngine loads in mmkd's tools is read as data."""
def test_scheme(tmp_path):
    torch.save(dict(state_dict=nn.Linear(2, 1).state_dict()), tmp_path / 'weights.pth')
    source = f'{SAFE_PREFIX}{tmp_path / "weights.pth"}'
    model = nn.Linear(2, 1)
    loaded = load_into(model, source)
    assert torch.equal(model.weight, loaded['state_dict']['weight'])


def test_scheme_refuses_code(tmp_path):
    write_zip(tmp_path / 'attack.pth', call('os', 'mkdir', str(tmp_path / 'executed')))
    with pytest.raises(MMKDError, match='os.mkdir'):
        CheckpointLoader.load_checkpoint(f'{SAFE_PREFIX}{tmp_path / "attack.pth"}', map_location='cpu')
    assert not (tmp_path / 'executed').exists()


def test_scheme_drops_text_that_mmengine_would_run(tmp_path):
    # On resuming, MMEngine's Runner executes meta.config as a Python config; nothing writes it today.
    torch.save(dict(state_dict={}, meta=dict(config='import os', epoch=3)), tmp_path / 'file.pth')
    loaded = CheckpointLoader.load_checkpoint(f'{SAFE_PREFIX}{tmp_path / "file.pth"}', map_location='cpu')
    assert loaded['meta'] == dict(epoch=3)

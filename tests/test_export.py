"""ONNX files: torch's answers, what they say of themselves, what stops them. Skips where the extra is not installed."""
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from ch5clf import export
from ch5clf.pretrained import lite0, lite1
from ch5clf.recipe import fit_recipe
from ch5clf.saved import load_model, predict, save_model
from drawn import loaders, three_breeds
from fastai.vision.all import MultiCategoryBlock, RegressionBlock, set_seed, vision_learner

installed = pytest.mark.skipif(bool(export._missing()), reason=f'not installed: {", ".join(export._missing())}; pip install "ch5clf[onnx]"')
NAMES = ['말티즈', 'T-shirt/top', '...']
def name(f): return NAMES[int(f.name[0])]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return three_breeds(tmp_path_factory.mktemp('사진'))


@pytest.fixture(scope='module')
def model(pictures, tmp_path_factory):
    set_seed(0)
    return load_model(save_model(fit_recipe(loaders(pictures, name), epochs=0), tmp_path_factory.mktemp('m')/'m.safetensors', temperature=True, threshold=.7))


@pytest.fixture(scope='module')
def file(model, tmp_path_factory):
    if export._missing(): pytest.skip(f'not installed: {", ".join(export._missing())}')
    return export.to_onnx(model, tmp_path_factory.mktemp('모델')/'반려동물.onnx')


def agrees(model, file, batches=(1, 2, 5, 16, 33)):
    import onnxruntime
    session, rng = onnxruntime.InferenceSession(file), torch.Generator().manual_seed(3)
    for n in batches:
        x = torch.randn(n, 3, model.about.size, model.about.size, generator=rng)
        with torch.no_grad(): want = model(x)
        assert np.abs(session.run(['logits'], {'pictures': x.numpy()})[0] - want.numpy()).max() <= 1e-4*max(1, want.abs().max())
    return session


def test_torchs_answers_at_any_number_of_pictures(model, file):
    session = agrees(model, file)
    assert [d if isinstance(d, int) else str for d in session.get_inputs()[0].shape] == [str, 3, 64, 64]
    assert isinstance(session.get_outputs()[0].shape[0], str) and session.get_outputs()[0].shape[1] == 3


def test_it_says_what_it_is(model, file, pictures):
    import onnx
    onnx.checker.check_model(onnx.load(file), full_check=True)
    told = {k: json.loads(v) for k, v in ((p.key, p.value) for p in onnx.load(file).metadata_props)}
    assert told['classes'] == sorted(NAMES) == model.about.classes and (told['mean'], told['std'], told['size']) == ([.5]*3, [.5]*3, 64)
    about = told['ch5clf']
    assert about['temperature'] == model.about.temperature and about['threshold'] == .7 and about['presize'] == 80 and about['task'] == 'category'


def test_nothing_of_this_machine_is_in_it(file):
    data = file.read_bytes()
    for word in (os.sep.join(Path(export.__file__).parts[-3:-1]), 'site-packages', str(Path.home())[1:] + '/', 'stack_trace', '.py'): assert word.encode() not in data, word
    assert [p.name for p in file.parent.iterdir()] == [file.name], 'one file to carry'


@installed
@pytest.mark.slow
@pytest.mark.parametrize('kind', ['several classes, lite1', 'numbers'])
def test_other_tasks_and_bodies(pictures, tmp_path, kind):
    dls = loaders(pictures, *((lambda f: float(f.stem[-1]), RegressionBlock) if kind == 'numbers' else (lambda f: [name(f)], MultiCategoryBlock)))
    learn = vision_learner(dls, lite0 if kind == 'numbers' else lite1, pretrained=False, **(dict(y_range=(0, 5)) if kind == 'numbers' else {}))
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    agrees(model, export.to_onnx(model, tmp_path/'m.onnx'), (1, 4))


def test_a_wrong_answer_is_never_written(model, file, tmp_path, monkeypatch):
    "The graph of one model, and another model whose last layer is off by a hundredth."
    import onnx
    monkeypatch.setattr(export, '_graph', lambda _: onnx.load(file))
    other = deepcopy(model)
    with torch.no_grad(): other[1][-1].bias.add_(.01)
    with pytest.raises(RuntimeError, match='answers otherwise.*nothing was written'): export.to_onnx(other, tmp_path/'m.onnx')
    assert list(tmp_path.iterdir()) == []
    (tmp_path/'m.onnx').write_bytes(b'old')
    before = predict(model, np.zeros((64, 64, 3)))[0]
    export.to_onnx(model, tmp_path/'m.onnx', overwrite=True)
    assert predict(model, np.zeros((64, 64, 3)))[0] == before
    agrees(model, tmp_path/'m.onnx', (3,))


def test_mistakes_are_named(model, tmp_path, monkeypatch):
    old = tmp_path/'old.onnx'
    old.write_bytes(b'old')
    def made(*_): raise AssertionError('too late')
    monkeypatch.setattr(export, '_graph', made)
    for given, path, error, says in ((model[0], 'm.onnx', TypeError, 'not a loaded model'), (model, 'm.pt', ValueError, 'something.onnx')):
        with pytest.raises(error, match=says): export.to_onnx(given, tmp_path/path)
    monkeypatch.setattr(export, '_NEEDS', ('onnx', 'no_such_package'))
    with pytest.raises(ModuleNotFoundError, match=r'no_such_package; run: pip install "ch5clf\[onnx\]"'): export.to_onnx(model, tmp_path/'m.onnx')
    monkeypatch.setattr(export, '_NEEDS', ())
    with pytest.raises(FileExistsError, match='overwrite=True'): export.to_onnx(model, old)
    with pytest.raises(FileNotFoundError, match='no such folder'): export.to_onnx(model, tmp_path/'gone'/'m.onnx')
    assert old.read_bytes() == b'old' and list(tmp_path.iterdir()) == [old]


def test_importing_the_room_wants_neither_fastai_nor_onnx():
    code = "import sys, ch5clf.export; print([m for m in ('fastai', 'onnx', 'onnxscript', 'onnxruntime') if m in sys.modules])"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8')
    assert r.stdout.strip() == '[]', r.stderr


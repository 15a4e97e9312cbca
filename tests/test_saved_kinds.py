"""Saved models of other tasks, pictures that are no files, and the way back to fastai."""
import io
import json
import random
import subprocess
import sys
import unicodedata
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ch5clf import saved
from ch5clf.pictures import BadPicture
from ch5clf.pretrained import lite0, lite1
from ch5clf.recipe import fit_recipe, unfrozen_fit
from ch5clf.saved import best_temperature, load_model, predict, probabilities, save_model
from drawn import loaders, three_breeds
from fastai.vision.all import (BCEWithLogitsLossFlat, CategoryBlock, CrossEntropyLossFlat, DataBlock, ImageBlock, L1LossFlat, MultiCategoryBlock, Normalize, PointBlock,
                               RandomSplitter, RegressionBlock, Resize, accuracy_multi, imagenet_stats, set_seed, vision_learner)

torch.backends.cudnn.allow_tf32 = False # else a GPU rounds factors to 10 bits


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return three_breeds(tmp_path_factory.mktemp('사진'))


def one(f): return 'abc'[int(f.name[0])]
def tags(f): return ['any', 'first: a' if f.name[0] == '0' else '...', *(['odd/1'] if int(f.stem[-1]) % 2 else [])]
def number(f): return float(f.stem[-1])
def pair(f): return [float(f.name[0]), float(f.stem[-1])]


def trained(dls, epochs=1, **kwargs):
    set_seed(0)
    learn = vision_learner(dls, lite0, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3)
    return learn


@pytest.fixture(scope='module')
def several(pictures): return trained(loaders(pictures, tags, MultiCategoryBlock), loss_func=BCEWithLogitsLossFlat(thresh=.4))


@pytest.fixture(scope='module')
def numbers(pictures): return trained(loaders(pictures, number, RegressionBlock), y_range=(-.5, 4))


@pytest.fixture(scope='module')
def single(pictures): return trained(loaders(pictures, one))


@pytest.fixture(scope='module')
def model(single, tmp_path_factory): return load_model(save_model(single, tmp_path_factory.mktemp('m')/'m.safetensors'))


def seen(learn, model):
    "The validation pictures in 0..1, and what fastai says to them."
    x = learn.dls.valid.one_batch()[0].cpu().as_subclass(torch.Tensor)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (model.about.mean, model.about.std))
    with learn.no_bar(), learn.no_logging(): return x*std + mean, learn.get_preds(ds_idx=1)[0][:len(x)]


# ---- several classes, and numbers

def test_several_classes(several, pictures, tmp_path):
    model = load_model(save_model(several, tmp_path/'m.safetensors'))
    about = model.about
    assert about.task == 'multicategory' and about.threshold == .4 and about.classes == list(several.dls.vocab) and '...' in about.classes
    x, there = seen(several, model)
    assert (probabilities(model, x) - there).abs().max() <= 1e-5
    files = list(several.dls.valid.items)
    for s, p in zip(predict(model, files, top=2), there, strict=True):
        told = {about.classes[i]: v.item() for i, v in enumerate(p)}
        if all(abs(v - .4) > .01 for v in told.values()): assert s.labels == sorted((c for c, v in told.items() if v >= .4), key=lambda c: -told[c])
        assert len(s.top) == max(2, len(s.labels)) and s.label == (s.labels or [None])[0] and abs(s.probability - max(told.values())) < .01
    none, all_ = predict(model, files[0], threshold=1.)[0], predict(model, files[0], threshold=0.)[0]
    assert none.labels == [] and none.label is None and 'not sure' in str(none)
    assert len(all_.labels) == len(about.classes) and all(c in str(all_) for c in about.classes)


def test_a_temperature_for_several_classes(several, tmp_path):
    model = load_model(save_model(several, tmp_path/'m.safetensors', temperature=True))
    logits, targets = several.get_preds(ds_idx=1, act=torch.nn.Identity())
    assert model.about.temperature == best_temperature(logits, targets)
    x, there = seen(several, model)
    assert (probabilities(model, x) - (there.logit()/model.about.temperature).sigmoid()).abs().max() <= 1e-4


def test_numbers(numbers, tmp_path):
    model = load_model(save_model(numbers, tmp_path/'m.safetensors'))
    assert model.about.task == 'regression' and model.about.classes == [] and model.about.head[-1] == dict(kind='SigmoidRange', low=-.5, high=4)
    x, there = seen(numbers, model)
    with torch.no_grad(): assert (saved._outputs(model, x) - there).abs().max() <= 1e-5
    for s, y in zip(predict(model, list(numbers.dls.valid.items)), there, strict=True):
        assert abs(s.value - y.item()) < .05 and s.y_range == [-.5, 4] and s.label is s.probability is s.error is None and '(from -0.5 to 4)' in str(s)
        assert json.loads(json.dumps(saved.asdict(s)))['value'] == s.value
    with pytest.raises(ValueError, match='tells numbers'): probabilities(model, x)


def test_two_numbers_without_a_range(pictures, tmp_path):
    learn = trained(loaders(pictures, pair, RegressionBlock(n_out=2)), loss_func=L1LossFlat())
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    said, = predict(model, pictures[0])
    assert len(said.value) == 2 and said.y_range is None and ', ' in str(said)
    again = model.to_learner(loaders(pictures, pair, RegressionBlock(n_out=2)), loss_func=L1LossFlat())
    assert all(a.equal(b) for a, b in zip(again.model.state_dict().values(), model.state_dict().values(), strict=True))


def test_loss_and_targets_must_belong_together(pictures, tmp_path):
    def refused(block, get_y, says, **kwargs):
        learn = vision_learner(loaders(pictures, get_y, block), lite0, pretrained=False, **kwargs)
        with pytest.raises(ValueError, match=says): save_model(learn, tmp_path/'m.safetensors')
    refused(MultiCategoryBlock, tags, 'CrossEntropy.*any number of classes.*BCEWithLogitsLossFlat', loss_func=CrossEntropyLossFlat())
    refused(MultiCategoryBlock, tags, 'L1Loss.*BCEWithLogitsLossFlat', loss_func=L1LossFlat())
    refused(RegressionBlock, number, 'BCEWithLogits.*a number.*MSELossFlat', loss_func=BCEWithLogitsLossFlat())
    refused(CategoryBlock, one, 'L1Loss.*one class.*cross-entropy', loss_func=L1LossFlat())
    points = DataBlock((ImageBlock, PointBlock), get_y=lambda f: [[1, 2]], splitter=RandomSplitter(seed=0), item_tfms=Resize(64)).dataloaders(pictures, bs=4, num_workers=0)
    with pytest.raises(ValueError, match='MSELoss'): save_model(vision_learner(points, lite0, pretrained=False), tmp_path/'m.safetensors')
    numbers = vision_learner(loaders(pictures, number, RegressionBlock), lite0, pretrained=False)
    for option in (dict(temperature=2.), dict(threshold=.5)):
        with pytest.raises(ValueError, match='numbers has neither'): save_model(numbers, tmp_path/'m.safetensors', **option)
    assert list(tmp_path.iterdir()) == []


# ---- pictures that are no files

def close(a, b, eps=8e-2): # a JPEG that is still packed is shrunk while it is unpacked: other roundings
    return a.error is b.error is None and all(abs(p - dict(b.top)[c]) < eps for c, p in a.top)


def test_one_picture_in_many_forms(model, pictures, tmp_path):
    file = pictures[5]
    with Image.open(file) as im, open(file, 'rb') as f, zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        z.write(file, 'a.jpg')
        loaded = im.copy()
        a = np.asarray(loaded)
        given = [file, str(file), loaded, a, a/255, a.astype(np.int32), np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]), file.read_bytes(), bytearray(file.read_bytes()), memoryview(file.read_bytes()),
                 io.BytesIO(file.read_bytes()), f, z.open('a.jpg') if z.mode == 'r' else io.BytesIO(file.read_bytes())]
        said = predict(model, given, bs=5)
    assert len(said) == len(given) and all(close(said[0], s) for s in said), [s.error for s in said]
    assert [s.file for s in said[2:5]] == ['picture 3 (image)', 'picture 4 (array)', 'picture 5 (array)'] and said[0].file == said[1].file == said[11].file == str(file)
    assert [s.file for s in said[7:11]] == [f'picture {i} (bytes)' for i in (8, 9, 10)] + ['picture 11 (file object)']
    for alone in (a, loaded, file.read_bytes(), io.BytesIO(file.read_bytes())): assert len(predict(model, alone)) == 1
    assert [s.top for s in predict(model, np.stack([a, a[::-1]]))] == [s.top for s in predict(model, [a, a[::-1]])]
    assert predict(model, (x for x in [a]))[0].top == predict(model, a)[0].top


def test_a_mixture_with_a_folder_keeps_its_order(model, pictures, tmp_path):
    (tmp_path/'deep'/'er').mkdir(parents=True)
    for name in ('b.png', 'deep/a.png', 'deep/er/c.png'): Image.new('RGB', (70, 70), 'red').save(tmp_path/name)
    said = predict(model, [Image.new('L', (9, 9)), tmp_path, b'', pictures[0]])
    assert [s.file for s in said] == ['picture 1 (image)', *(str(tmp_path/n) for n in ('b.png', 'deep/a.png', 'deep/er/c.png')), 'picture 3 (bytes)', str(pictures[0])]
    assert [s.error is None for s in said] == [True]*4 + [False, True] and str(said[4]).startswith('picture 3 (bytes): empty')


def test_an_image_is_seen_upright_and_left_alone(model, pictures):
    im, exif = Image.open(pictures[0]).convert('RGB'), Image.Exif()
    exif[0x112] = 6
    out = io.BytesIO()
    im.transpose(Image.ROTATE_90).save(out, 'PNG', exif=exif)
    turned = Image.open(io.BytesIO(out.getvalue()))
    size, before = turned.size, turned.tobytes()
    assert close(predict(model, turned)[0], predict(model, im)[0], 1e-6) and (turned.size, turned.tobytes()) == (size, before)


def test_odd_objects_get_a_word(model, pictures, tmp_path):
    good = pictures[0].read_bytes()
    closed = Image.open(io.BytesIO(good)); closed.close()
    cut = Image.open(io.BytesIO(good[:len(good)//2]))
    shut = open(pictures[0], 'rb'); shut.close()
    class Stream(io.RawIOBase): # of a socket, say: it cannot go back
        def __init__(self): self.f = io.BytesIO(good)
        def seekable(self): return False
        def readable(self): return True
        def readinto(self, b): return self.f.readinto(b)
    class Broken:
        def read(self, *_): raise RuntimeError('no line')
    (tmp_path/'t.txt').write_text('x')
    with open(tmp_path/'t.txt', encoding='utf-8') as text:
        said = predict(model, [closed, cut, shut, Stream(), Broken(), text, b'hello', np.zeros((3, 8, 8)), np.full((8, 8), 300), good])
    errors = [s.error for s in said]
    assert errors[3] is errors[9] is None and close(said[3], said[9], 1e-6)
    for i, word in enumerate(['unreadable', 'unreadable|truncated', 'unreadable', '', 'no line|unreadable', 'opened? .*text|open as text.*rb', 'not an image, inside is text', r'shape \(3, 8, 8\)', '300 to 300.*255']):
        if word: assert __import__('re').search(word, errors[i]), (i, errors[i])
    for wrong in (7, None, object(), {'a': 1}, [[pictures[0]]], torch.zeros(3, 8, 8)):
        with pytest.raises(TypeError): predict(model, [pictures[0], wrong] if not isinstance(wrong, dict) else [wrong])
    with pytest.raises(TypeError, match='picture 2 is of type NoneType.*path, a Pillow image'): predict(model, [pictures[0], None])


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.int64, np.float32, np.float64, np.bool_, np.float16]), hnp.array_shapes(min_dims=0, max_dims=4, max_side=5)))
def test_any_array_is_a_picture_or_a_word(x):
    try: im = saved._from_array(x)
    except BadPicture as e: assert e.problem == 'odd colours' and e.remedy; return
    y = x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x
    scale = 1. if x.dtype.kind in 'ui' else 255.
    assert im.size == (y.shape[1], y.shape[0]) and np.abs(np.asarray(im, float) - y.astype(float)*scale).max() <= .51


# ---- going on

def test_to_learner_goes_on(single, model, pictures, tmp_path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    dls = loaders(pictures, one)
    learn = model.to_learner(dls, metrics=accuracy_multi, lr=3e-4)
    assert learn.lr == 3e-4 and len(learn.metrics) == 1 and len([t for t in dls.after_batch.fs if isinstance(t, Normalize)]) == 1
    assert all(p.requires_grad for p in learn.model.parameters())
    learn.metrics = []
    with learn.no_bar(), learn.no_logging(), single.no_bar():
        assert (learn.get_preds()[0] - single.get_preds()[0]).abs().max() < 1e-5
        learn.freeze(); learn.fit(1, 1e-3); learn.unfreeze(); learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    assert all(v.equal(before[k]) for k, v in model.state_dict().items()) and model.training is False
    assert not learn.model[1][4].weight.cpu().equal(before['1.4.weight'])
    again = load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert again.about.head == model.about.head and again.about.classes == model.about.classes
    assert load_model(save_model(again.to_learner(loaders(pictures, one)), tmp_path/'n.safetensors')).about.mean == [.5]*3


def test_the_recipes_model_goes_on(pictures, tmp_path):
    learn = fit_recipe(loaders(pictures, one), lite1, epochs=0)
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    more = model.to_learner(loaders(pictures, one))
    with more.no_bar(), more.no_logging(): unfrozen_fit(more, 1)
    about = load_model(save_model(more, tmp_path/'n.safetensors', temperature=True)).about
    assert about.arch == 'lite1' and [layer['kind'] for layer in about.head] == ['AdaptiveAvgPool2d', 'Flatten', 'UnitLength', 'Linear']


def test_other_loaders_are_named(model, several, pictures, tmp_path):
    def refused(says, block=CategoryBlock, get_y=one, m=model, **kwargs):
        with pytest.raises(ValueError, match=says): m.to_learner(loaders(pictures, get_y, block, **kwargs))
    refused('d known to the loaders only; c known to the model only', get_y=lambda f: one(f).replace('c', 'd'))
    refused('c known to the model only', get_y=lambda f: one(f).replace('c', 'b'))
    refused('another order', CategoryBlock(vocab=['c', 'b', 'a'], sort=False))
    other = loaders(pictures, one)
    other.add_tfms([Normalize.from_stats(*imagenet_stats)], 'after_batch')
    with pytest.raises(ValueError, match='normalise by'): model.to_learner(other)
    refused('trained for category, and these loaders are for multicategory', MultiCategoryBlock, lambda f: [one(f)])
    refused('known to the model only', RegressionBlock, number)
    same = model.to_learner(loaders(pictures, lambda f: unicodedata.normalize('NFD', one(f))))
    assert list(same.dls.vocab) == model.about.classes


def test_predicting_all_tasks_needs_no_fastai(several, numbers, pictures, tmp_path):
    files = [save_model(several, tmp_path/'a.safetensors'), save_model(numbers, tmp_path/'b.safetensors')]
    code = '''
import sys
from ch5clf.saved import load_model, predict
said = [predict(load_model(f), sys.argv[3])[0] for f in sys.argv[1:3]]
print(said[0].top[0][0], said[1].value, [m for m in sys.modules if m.split('.')[0] in ('fastai', 'fastcore', 'pandas')])
'''
    r = subprocess.run([sys.executable, '-c', code, *map(str, files), str(pictures[0])], capture_output=True, text=True, encoding='utf-8')
    assert r.returncode == 0 and r.stdout.strip().endswith('[]'), r.stderr


def test_temperature_is_honest_where_all_are_right():
    "The surer the logits, the larger the temperature; the confidence that remains is that of Platt's targets."
    for n in (4, 20, 100):
        y = torch.arange(n) % 4
        for scale in (8., 40.):
            sure = torch.nn.functional.one_hot(y, 4)*scale
            said = (sure/best_temperature(sure, y)).softmax(1).amax(1)
            if .05 < best_temperature(sure, y) < 20: assert abs(said - (n + 1)/(n + 2)).max() < .02
    rng = random.Random(0)
    y = torch.tensor([rng.randrange(4) for _ in range(400)])
    logits = 3*torch.nn.functional.one_hot(y, 4).float() + torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    grid = torch.logspace(-1, 1, 300)
    loss = torch.stack([torch.nn.functional.cross_entropy(logits/t, y) for t in grid])
    assert abs(best_temperature(logits, y)/grid[loss.argmin()] - 1) < .1
    with pytest.raises(ValueError, match='held back'): best_temperature(logits[:0], y[:0])

"""Saved models under faults: hostile and damaged files, interrupted writing, odd photos, a second process."""
import errno
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import time
import types
import unicodedata
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn
import torch
from hypothesis import given, settings, strategies as st
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load, save

from ch5clf import pictures as reader, places, saved
from ch5clf.loaders import pet_dls
from ch5clf.pretrained import lite0, lite1, lite2
from ch5clf.recipe import fit_recipe, linear_head
from ch5clf.sample import BREEDS, draw
from ch5clf.saved import load_model, predict, probabilities, save_model
import drawn
from fastai.vision.all import (BCEWithLogitsLossFlat, CategoryBlock, DataBlock, ImageBlock, MSELossFlat, RandomSplitter, Resize, ResizeMethod, aug_transforms, load_learner,
                               set_seed, vision_learner)

torch.backends.cudnn.allow_tf32 = False # else a GPU rounds factors to 10 bits

NAMES = ['말티즈', 'T-shirt/top', 'Bläsi']
FEW = {'x': torch.zeros(1)}  # the description is judged before the weights


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return drawn.three_breeds(tmp_path_factory.mktemp('사진 모음'))


def loaders(pictures, names=NAMES, **kwargs):
    return drawn.loaders(pictures, lambda f: names[int(f.name[0])], **kwargs)


@pytest.fixture(scope='module')
def learn(pictures):
    set_seed(0) # a head by chance may leave two classes alike
    learn = vision_learner(loaders(pictures), lite0)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    return learn


@pytest.fixture(scope='module')
def file(learn, tmp_path_factory): return save_model(learn, tmp_path_factory.mktemp('모델')/'반려동물.safetensors')


@pytest.fixture(scope='module')
def model(file): return load_model(file)


def parts(file):
    data = file.read_bytes()
    header = json.loads(data[8:8 + int.from_bytes(data[:8], 'little')])
    return json.loads(header['__metadata__']['ch5clf']), load(data)


def write(path, about, tensors, text=None):
    path.write_bytes(save(tensors, metadata={'ch5clf': json.dumps(about) if text is None else text}))
    return path


def signed(about, tensors, **changes):
    "The description with changes and the checksum that `save_model` would give it."
    told = {k: v for k, v in {**about, **changes}.items() if k != 'sha256'}
    return dict(told, sha256=saved._digest(tensors, told))


def refuses(path, says):
    with pytest.raises(ValueError, match=says) as e: load_model(path)
    assert str(e.value).startswith(path.name)


# ---- the same answers

def both(learn, model):
    x = learn.dls.valid.one_batch()[0].cpu()
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (model.about.mean, model.about.std))
    with learn.no_bar(), learn.no_logging(): there = learn.get_preds(dl=learn.dls.valid)[0][:len(x)]
    return there, probabilities(model, x.as_subclass(torch.Tensor)*std + mean)


@pytest.mark.parametrize('arch,kwargs', [(lite0, dict(ps=0., lin_ftrs=[64, 32])), (lite1, {}), (lite2, dict(pretrained=False))], ids=['other widths', 'lite1', 'lite2 without normalisation'])
def test_every_body_gives_the_learners_probabilities(pictures, tmp_path, arch, kwargs):
    learn = vision_learner(loaders(pictures), arch, **kwargs)
    if not kwargs.get('pretrained', True):
        for m in learn.model.modules():
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm): m.running_mean.normal_(0, .1)
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert model.about.arch == arch.__name__ and model.about.mean == ([.5]*3 if kwargs.get('pretrained', True) else [0.]*3)
    there, here = both(learn, model)
    assert (there - here).abs().max() <= 1e-5 and type(model) is saved.SavedModel


def test_files_give_what_validation_gave(learn, model):
    files = list(learn.dls.valid.items)
    there = learn.get_preds(dl=learn.dls.valid)[0]
    for s, p in zip(predict(model, files, top=3, bs=2), there, strict=True):
        assert all(abs(q - p[model.about.classes.index(c)]) <= 1e-2 for c, q in s.top)


def test_real_photos(learn, model):
    "Photographs that installed packages carry: larger, and of other shapes, than paper pets."
    files = [Path(skimage.__file__).parent/'data'/'chelsea.png', *sorted((Path(sklearn.__file__).parent/'datasets'/'images').glob('*.jpg'))]
    assert [f.name for f in files] == ['chelsea.png', 'china.jpg', 'flower.jpg']
    there = learn.get_preds(dl=learn.dls.test_dl(files))[0]
    for s, p in zip(predict(model, files), there, strict=True): assert s.top[0][0] == learn.dls.vocab[p.argmax()] and abs(s.probability - p.max()) <= 1e-2


def test_an_exported_learner_and_fastais_own_loader_can_be_saved(learn, pictures, tmp_path):
    learn.path = tmp_path
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.export('x.pkl')
        again = load_learner(tmp_path/'x.pkl')
    about = load_model(save_model(again, tmp_path/'again.safetensors')).about
    assert (about.size, about.presize, about.classes) == (64, 80, sorted(NAMES))
    block = DataBlock((ImageBlock, CategoryBlock), get_y=lambda f: f.name[0], splitter=RandomSplitter(seed=0), item_tfms=Resize(80), batch_tfms=aug_transforms(size=64, min_scale=.75))
    plain = vision_learner(block.dataloaders(pictures, bs=4, num_workers=0), lite0)
    about = load_model(save_model(plain, tmp_path/'plain.safetensors')).about
    assert (about.size, about.presize) == (64, 80)


def test_half_precision_is_kept_as_float32(pictures, tmp_path):
    learn = vision_learner(loaders(pictures), lite0)
    learn.model.bfloat16()
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# ---- saving

def test_saving_leaves_no_trace(learn, tmp_path):
    learn.model.train(); learn.model[0][1].eval()
    state = {k: v.clone() for k, v in learn.model.state_dict().items()}
    modes, rng, own = [m.training for m in learn.model.modules()], torch.get_rng_state(), random.getstate()
    load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert torch.get_rng_state().equal(rng) and random.getstate() == own
    assert [m.training for m in learn.model.modules()] == modes
    assert all(v.equal(learn.model.state_dict()[k]) for k, v in state.items())


def test_the_way_back(learn, file, pictures):
    other = vision_learner(loaders(pictures), lite0, pretrained=False)
    other.model.load_state_dict(load_model(file).state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert other.model.cpu().eval()(x).equal(learn.model.cpu().eval()(x))


def test_the_recipes_head(pictures, tmp_path):
    quick = fit_recipe(loaders(pictures), epochs=0)
    rng, own = torch.get_rng_state(), random.getstate()
    state, modes = {k: v.clone() for k, v in quick.model.state_dict().items()}, [m.training for m in quick.model.modules()]
    path = save_model(quick, tmp_path/'m.safetensors', temperature=True, threshold=.7)
    assert torch.get_rng_state().equal(rng) and random.getstate() == own and modes == [m.training for m in quick.model.modules()]
    assert all(v.equal(quick.model.state_dict()[k]) for k, v in state.items())
    model = load_model(path)
    assert [layer['kind'] for layer in model.about.head] == ['AdaptiveAvgPool2d', 'Flatten', 'UnitLength', 'Linear']
    there, here = both(quick, model)
    assert ((there.log()/model.about.temperature).softmax(1) - here).abs().max() <= 1e-5
    logits, targets = quick.get_preds(act=torch.nn.Identity())
    assert model.about.temperature == saved.best_temperature(logits, targets)
    for s in predict(model, pictures): assert (s.label is None) == (s.probability < .7)
    for s in predict(model, pictures, threshold=.1): assert s.label


def test_a_longer_features_length_is_kept(pictures, tmp_path):
    learn = vision_learner(loaders(pictures), lite0, custom_head=linear_head(1280, 3, length=7.))
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert model.about.head[2] == dict(kind='UnitLength', length=7.) and not (both(learn, model)[0] - both(learn, model)[1]).abs().max() > 1e-5


@pytest.mark.parametrize('kwargs', [dict(concat_pool=False), dict(lin_first=True, lin_ftrs=[32])], ids=str)
def test_other_heads_of_fastai(pictures, tmp_path, kwargs):
    learn = vision_learner(loaders(pictures), lite0, **kwargs)
    there, here = both(learn, load_model(save_model(learn, tmp_path/'m.safetensors')))
    assert (there - here).abs().max() <= 1e-5


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.text(st.characters(codec='utf-8', exclude_categories=['Cc', 'Cs', 'Zl', 'Zp']), min_size=1, max_size=30).filter(str.strip), min_size=2, max_size=6, unique_by=lambda n: unicodedata.normalize('NFC', n)))
def test_any_name_that_is_no_path_stays_as_it_is(names):
    bad = [n for n in names if any(p.strip() == '..' for p in re.split(r'[/\\]', n)) or re.match(r'\s*([A-Za-z]:)?[/\\]+[^/\\\s]', n)]
    assert [saved._fit_name(n) for n in names] == [n not in bad for n in names]


def test_names_with_signs_are_kept(pictures, tmp_path):
    names = ['a: b', '...', 'C:x/y \\ z']
    learn = vision_learner(loaders(pictures, names), lite0, pretrained=False)
    model = load_model(save_model(learn, tmp_path/'m.safetensors'))
    assert model.about.classes == sorted(names) and predict(model, pictures[0], threshold=0)[0].label in names


@pytest.mark.parametrize('fault', ['open', 'fsync', 'replace'])
def test_a_full_disk_leaves_the_old_file(learn, tmp_path, monkeypatch, fault):
    path = tmp_path/'m.safetensors'
    path.write_bytes(b'old')
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    if fault == 'open': monkeypatch.setattr(places, 'open', full, raising=False)
    else: monkeypatch.setattr(saved.os, fault, full)
    with pytest.raises(OSError, match='No space.*make room.*m.safetensors'): save_model(learn, path, overwrite=True)
    assert path.read_bytes() == b'old' and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_leavings_of_killed_processes_are_swept(learn, tmp_path):
    names = ['.ch5clf-0a.tmp', '.ch5clf-0b.tmp', '.ch5clf-0c.tmp', 'mine.tmp', '..ch5clf-0d.tmp.77-88.tmp']
    for name, hours in zip(names, (48, -48, 0, 48, 48)):
        (tmp_path/name).write_bytes(b'x')
        os.utime(tmp_path/name, (time.time() - 3600*hours,)*2)
    save_model(learn, tmp_path/'m.safetensors')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['.ch5clf-0c.tmp', 'm.safetensors', 'mine.tmp']


@pytest.mark.parametrize('links', [True, False])
def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, links):
    def none(*args): raise OSError(errno.EPERM, 'no hard links here')
    if not links: monkeypatch.setattr(saved.os, 'link', none)
    path, won = tmp_path/'m.safetensors', []
    def one(i):
        try: saved.put_file(bytes([i])*1000, path, False)
        except FileExistsError: return
        won.append(i)
    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    if links:
        for t in threads: t.start()
        for t in threads: t.join()
    else: one(0), one(1)
    assert len(won) == 1 and path.read_bytes() == bytes(won)*1000 and len(list(tmp_path.iterdir())) == 1
    saved.put_file(b'new', path, True)
    assert path.read_bytes() == b'new'


def test_what_cannot_be_saved_is_told(learn, pictures, tmp_path):
    path = tmp_path/'m.safetensors'
    def refused(l, says, error=ValueError, **kwargs):
        with pytest.raises(error, match=says): save_model(l, path, **kwargs)
    refused(learn.model, 'not a learner', TypeError)
    refused(learn, 'temperature', temperature=0)
    fresh = lambda dls=None, **kwargs: vision_learner(dls or loaders(pictures), lite0, pretrained=False, **kwargs)
    refused(fresh(loss_func=BCEWithLogitsLossFlat()), 'BCEWithLogits.*cross-entropy')
    refused(fresh(loss_func=MSELossFlat()), 'MSELoss.*cross-entropy')
    refused(fresh(loaders(pictures, ['a', '가', unicodedata.normalize('NFD', '가')])), 'more than once')
    refused(fresh(loaders(pictures, ['a', 'b', '../c'])), 'no class name')
    diverged = fresh()
    with torch.no_grad(): diverged.model[1][4].weight[0, 0] = torch.nan
    refused(diverged, '1.4.weight holds NaN.*lower rate')
    refused(fresh(custom_head=torch.nn.Linear(1280, 3)), 'vision_learner')
    refused(fresh(y_range=(0, 1)), 'SigmoidRange.*vision_learner')
    refused(learn, 'threshold', threshold=1.5)
    refused(fresh(bn_final=True), 'last layer.*vision_learner')
    refused(fresh(n_in=1), 'not the body')
    changed = fresh()
    changed.model[0][0].forward = lambda x, f=changed.model[0][0].forward: f(x) + 1
    refused(changed, 'answers otherwise')
    squish = DataBlock((ImageBlock, CategoryBlock), get_y=lambda f: f.name[0], splitter=RandomSplitter(seed=0), item_tfms=Resize(64, ResizeMethod.Squish))
    refused(fresh(squish.dataloaders(pictures, bs=4, num_workers=0)), "'squish'.*centre square")
    assert list(tmp_path.iterdir()) == []


# ---- files that are not ours, or no longer

def test_no_code_is_executed(tmp_path):
    class Surprise:
        def __reduce__(self): return Path.touch, (tmp_path/'it ran',)
    path = tmp_path/'m.safetensors'
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Surprise(), protocol))
        refuses(path, 'pickle|no complete safetensors')
    torch.save(dict(x=Surprise()), path)
    refuses(path, 'pickle')
    torch.save(dict(x=Surprise()), path, _use_new_zipfile_serialization=False)
    refuses(path, 'pickle')
    assert not (tmp_path/'it ran').exists()


def test_a_header_that_begins_like_a_pickle_is_none(file, tmp_path):
    about, tensors = parts(file)
    for n in range(0, 300, 4):
        long = {str(i): 'v'*min(99, max(0, n - 99*i)) for i in range(4)}
        data = save(tensors, metadata={'ch5clf': json.dumps(signed(about, tensors, versions=long))})
        if data[:1] == b'\x80': break
    else: pytest.fail('no header of such a length was met')
    (tmp_path/'m.safetensors').write_bytes(data)
    assert load_model(tmp_path/'m.safetensors').about.classes == about['classes']


CHANGES = dict(
    arch=['resnet18', '../lite0', 'lite1', None, ['lite0'], 'timm/x'], classes=[['a', 'b'], ['a']*3, ['a', 'b', '../../etc/passwd'], ['a', 'b', 'C:\\x'], ['a', 'b', ' '], ['a', 'b', '\x1b[2J'], ['a', 'b', 3], 'abc', {}, ['a'], ['a', 'b', 'x'*201], ['가', unicodedata.normalize('NFD', '가'), 'c'], ['a', 'b', '\ud800']],
    size=[10**12, 0, -1, 64.0, '64', True, None, [64]], presize=[10**12, 63, None], mean=[[.5]*2, [float('nan')]*3, [float('inf')]*3, ['a']*3, None], std=[[0]*3, [-1]*3, [1e-300]*3], temperature=[0, -1, 'x', 1e9, True],
    versions=[None, {'x': 1}, {'x': 'y'*101}, {str(i): '' for i in range(21)}], form=[4, 0, None, '2', True], task=['multi', None, 3, 'regression'], threshold=[-1, 2, 'x', True, float('nan')], sha256=['0'*64, None, 1],
    head=[[], None, 'x', [1, 2, 3]])


@pytest.mark.parametrize('field', CHANGES)
def test_a_changed_description_is_refused(file, tmp_path, field):
    about, tensors = parts(file)
    says = dict(mean='mean|is no number', threshold='threshold|is no number', task='task|classes|fields', sha256='damaged', form='form 1', arch='arch|missing').get(field, field)
    for value in CHANGES[field]: refuses(write(tmp_path/'m.safetensors', {**about, field: value}, tensors if field == 'sha256' else FEW), says)
    refuses(write(tmp_path/'m.safetensors', {k: v for k, v in about.items() if k != field}, tensors if field == 'sha256' else FEW), 'fields|form 1|damaged')


def test_a_changed_head_is_refused(file, tmp_path):
    about, _ = parts(file)
    for i, layer in enumerate(about['head']):
        changes = [dict(layer, kind='os.system'), dict(layer, path='../../x'), 'x', {}] + [dict(layer, **{f: v}) for f in layer if f != 'kind' for v in (-1, 10**12, 'x', None, 7)]
        for change in changes:
            head = [*about['head']]
            head[i] = change
            refuses(write(tmp_path/'m.safetensors', dict(about, head=head), FEW), 'head: its last|head, layer')
    for head in (about['head'][1:], about['head'][:-1], about['head']*3, about['head'] + [dict(kind='ReLU')]): refuses(write(tmp_path/'m.safetensors', dict(about, head=head), FEW), 'head')


def old_form(file, path, form, **changes):
    "The same model as it was written before there were tasks; at first its description had no checksum either."
    about, tensors = parts(file)
    told = dict({k: v for k, v in about.items() if k not in saved._YOUNGER | {'sha256'}}, form=form, **changes)
    return write(path, dict(told, sha256=saved._digest(tensors, told if form > 1 else None)), tensors)


@pytest.mark.parametrize('form', [1, 2])
def test_files_of_earlier_forms_still_load(file, model, tmp_path, form):
    again = load_model(old_form(file, tmp_path/'m.safetensors', form))
    assert again.about == model.about and all(v.equal(again.state_dict()[k]) for k, v in model.state_dict().items())
    assert again.about.task == 'category' and again.about.threshold is None


def test_no_file_is_weakened_into_an_earlier_form(file, tmp_path):
    about, tensors = parts(file)
    path, old = tmp_path/'m.safetensors', {k: v for k, v in about.items() if k not in saved._YOUNGER}
    for form in (1, 2): refuses(write(path, dict(about, form=form), tensors), 'fields')
    for form in (1, 2): refuses(write(path, dict(old, form=form), tensors), 'damaged')
    refuses(write(path, dict(old, form=1, sha256=saved._digest({**tensors, 'x': torch.zeros(1)})), tensors), 'damaged')


@pytest.mark.parametrize('change', [dict(classes=['a', 'b', 'c']), dict(classes=sorted(NAMES)[::-1]), dict(size=65), dict(presize=81), dict(std=[.6]*3), dict(mean=[0., .5, .5]), dict(temperature=2.), dict(versions={}), dict(threshold=.9), dict(task='multicategory')], ids=str)
def test_a_believable_change_of_the_description_is_refused_too(file, tmp_path, change):
    about, tensors = parts(file)
    refuses(write(tmp_path/'m.safetensors', {**about, **change}, tensors), 'the description are not those that were saved')


def test_no_flipped_bit_of_the_description_changes_what_is_loaded(file, model, tmp_path, monkeypatch):
    "With one small tensor instead of all, for speed; whether weights fit is asked in other tests."
    monkeypatch.setattr(saved, '_filled', lambda about, tensors: types.SimpleNamespace(about=about))
    path = write(tmp_path/'m.safetensors', signed(parts(file)[0], FEW), FEW)
    assert load_model(path).about == model.about
    data, rng, same = path.read_bytes(), random.Random(4), 0
    bits = [(at, bit) for at in range(len(data)) for bit in range(8)]
    for at, bit in rng.sample(bits, 2000):
        hurt = bytearray(data)
        hurt[at] ^= 1 << bit
        path.write_bytes(hurt)
        try: assert load_model(path).about == model.about, at
        except ValueError: continue
        same += 1 # the case of a hexadecimal digit, say
    assert same < 200


def test_odd_json_is_refused(file, tmp_path):
    about, tensors = parts(file)[0], FEW
    path, good = tmp_path/'m.safetensors', json.dumps(about)
    for text in ('', 'x', '[]', '3', 'null', '['*100_000, good[:-1], good[:-1] + ', "size": 32}', good[:-1] + ', "weights": "../../x"}', good.replace('"size": 64', '"size": ' + '9'*5000)): refuses(write(path, None, tensors, text), 'the description|form 1')
    path.write_bytes(save(tensors)); refuses(path, 'without a description')
    path.write_bytes(save(tensors, metadata={'format': 'pt'})); refuses(path, 'without a description')
    for data in (b'', b'x', b'\xff'*64, (2**40).to_bytes(8, 'little'), (5).to_bytes(8, 'little') + b'[1,2]', (2**63).to_bytes(8, 'little') + b'{}'): path.write_bytes(data); refuses(path, 'no complete safetensors')


def test_other_weights_are_refused(file, tmp_path):
    about, tensors = parts(file)
    path, last = tmp_path/'m.safetensors', '1.8.weight'
    assert tensors[last].shape == (3, 512)
    for change, says in (({last: None}, '1 tensors are missing'), ({'../x': torch.zeros(1)}, '1 do not belong'), ({last: torch.zeros(2, 512)}, 'expected'), ({last: torch.zeros(3*512)}, 'expected'), ({last: tensors[last].half()}, 'float16'),
                         ({last: tensors[last]*torch.nan}, 'NaN'), ({last: tensors[last]/0.}, 'NaN or infinity'), ({'0.1.running_var': -tensors['0.1.running_var']}, 'negative variances'), ({last: tensors[last] + 1}, 'damaged')):
        refuses(write(path, about, {k: v for k, v in {**tensors, **change}.items() if v is not None}), says)
    with open(path, 'wb') as f: f.truncate(2**28 + 1)
    refuses(path, 'larger than')
    refuses(tmp_path, 'no file')
    with pytest.raises(FileNotFoundError, match='no such file'): load_model(tmp_path/'gone.safetensors')


def test_damage_is_found(file, tmp_path):
    data, rng, path = file.read_bytes(), random.Random(0), tmp_path/'m.safetensors'
    header = 8 + int.from_bytes(data[:8], 'little')
    for n in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(data)//2, len(data) - 1): path.write_bytes(data[:n]); refuses(path, 'no complete safetensors')
    path.write_bytes(data + b'\0'); refuses(path, 'no complete safetensors')
    whole = load_model(file)
    for at in [rng.randrange(header) for _ in range(25)] + [rng.randrange(header, len(data)) for _ in range(10)]:
        hurt = bytearray(data)
        hurt[at] ^= 1 << rng.randrange(8)
        path.write_bytes(hurt)
        try: again = load_model(path)
        except ValueError as e: assert str(e).startswith(path.name); continue
        assert at < header and again.about == whole.about and all(v.equal(again.state_dict()[k]) for k, v in whole.state_dict().items()), at


# ---- photos as people have them

def encoded(im, format, **kwargs):
    out = io.BytesIO()
    im.save(out, format, **kwargs)
    return out.getvalue()


def odd_pictures(folder):
    rng = np.random.default_rng(0)
    base = Image.fromarray(np.kron(rng.integers(0, 256, (9, 13, 3)), np.ones((20, 20, 1))).astype(np.uint8))
    deep = Image.fromarray((np.asarray(base.convert('L')).astype(np.uint16)*257))
    alpha = base.copy(); alpha.putalpha(base.convert('L'))
    turned = Image.Exif(); turned[0x112] = 8
    made = dict(rgb=(base, 'JPEG', {}), ink=(base.convert('CMYK'), 'JPEG', {}), grey=(base.convert('L'), 'PNG', {}), bit=(base.convert('1'), 'PNG', {}), palette=(base.quantize(16), 'PNG', {}),
                clear=(base.quantize(16), 'PNG', dict(transparency=3)), alpha=(alpha, 'PNG', {}), greyalpha=(alpha.convert('LA'), 'PNG', {}), webp=(alpha, 'WEBP', {}), deep=(deep, 'PNG', {}), deeptiff=(deep, 'TIFF', {}),
                float=(deep.convert('F'), 'TIFF', {}), ints=(base.convert('L').convert('I'), 'TIFF', {}), film=(base, 'GIF', dict(save_all=True, append_images=[base.rotate(90)])), turned=(base, 'JPEG', dict(exif=turned)),
                large=(base.resize((3000, 2000)), 'JPEG', {}), scan=(base.resize((1700, 1400)), 'PNG', {}), double=(base.resize((200, 160)), 'PNG', {}), quarter=(base.resize((320, 320)), 'PNG', {}), tiny=(base.resize((1, 1)), 'PNG', {}), long=(base.resize((3000, 2)), 'PNG', {}), bmp=(base, 'BMP', {}), ycc=(base.convert('YCbCr'), 'TIFF', {}))
    for name, (im, format, kwargs) in made.items(): (folder/f'{name} 사진.jpg').write_bytes(encoded(im, format, **kwargs))
    return sorted(folder.glob('*.jpg'))


def test_odd_pictures_are_seen_as_in_training(pictures, tmp_path):
    files = odd_pictures(tmp_path)
    there = loaders(pictures).test_dl(files, bs=len(files)).one_batch()[0]*255
    for f, x in zip(files, there, strict=True):
        off = (saved._picture(f, 64, 80) - x).abs()
        rare = f.stem.split()[0] not in ('tiny', 'long', 'scan')  # enlarged, or shrunk in two steps: rounded otherwise in more than a few pixels
        assert off.max() < 1.01 and not (rare and (off > .01).float().mean() > .01), f'{f.name}: `predict` no longer opens pictures as ch5clf.presize does'
    assert len(files) == 23


def test_deep_pictures_keep_the_scale_of_their_set(tmp_path):
    "Pictures of 12 bits in files of 16: a dark one alone must not be stretched to white."
    rng, files = np.random.default_rng(0), []
    for i in range(12):
        top = 4095 if i % 2 else 900
        f = tmp_path/'set'/'ab'[i % 2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, top + 1, (40, 40), dtype=np.uint16)).save(f)
        files.append(f)
    dls = pet_dls(tmp_path/'set', size=32, presize=40, bs=2, seed=1, twins=False)
    learn = fit_recipe(dls, lite0, epochs=0)
    save_model(learn, tmp_path/'m.safetensors', size=32, presize=40)
    about = load_model(tmp_path/'m.safetensors').about
    assert about.scale == list(dls.train.scale) and about.scale[1] > 4000
    there = dls.test_dl(files, bs=len(files)).one_batch()[0]
    seen = torch.stack([saved._picture(f, 32, 40, about.scale) for f in files])/255
    mean, std = (torch.tensor(v)[:, None, None] for v in (about.mean, about.std))
    assert ((seen - mean)/std - there.cpu().as_subclass(torch.Tensor)).abs().max() < .02
    assert saved._picture(files[0], 32, 40, about.scale).float().mean() < 40 < 100 < saved._picture(files[0], 32, 40).float().mean()
    with pytest.raises(ValueError, match='scale'): saved.About(**{**about.__dict__, 'scale': [5, 1]})


def test_broken_files_are_named_and_the_rest_go_on(model, pictures, tmp_path, monkeypatch):
    good = pictures[0]
    bomb = bytearray(encoded(Image.new('1', (8, 8)), 'BMP')); bomb[18:26] = (60000).to_bytes(4, 'little')*2
    exif = encoded(Image.open(good), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\x01\x12\0\x03'*20)
    (tmp_path/'folder').mkdir()
    for name, data in dict(text=b'hello', empty=b'', cut=good.read_bytes()[:3000], heic=b'\0\0\0\x18ftypheic\0\0\0\0', bomb=bytes(bomb), exif=exif).items(): (tmp_path/f'{name}.jpg').write_bytes(data)
    if hasattr(os, 'mkfifo'): os.mkfifo(tmp_path/'pipe.jpg')
    reads = reader.reads
    monkeypatch.setattr(reader, 'reads', lambda kind: kind != 'HEIF' and reads(kind))
    names = ['text', 'empty', 'cut', 'heic', 'bomb', 'exif', 'gone'] + ['pipe']*hasattr(os, 'mkfifo')
    said = predict(model, [p for n in names for p in (tmp_path/f'{n}.jpg', good)], bs=3)
    errors = {n: s.error for n, s in zip(names, said[::2], strict=True)}
    for n, part in dict(text='not an image, inside is text', empty='empty', cut='truncated', heic='pip install pillow-heif', bomb='save a smaller copy', gone='no such file', pipe='a pipe or a device').items():
        if n in errors: assert part in errors[n] and part in str(said[2*names.index(n)]), errors[n]
    assert errors['exif'] is None
    assert all(s.error is None and s.top[0][0] == said[1].top[0][0] for s in said[1::2])


def test_one_unreachable_path_does_not_lose_the_batch(model, pictures, tmp_path):
    good, locked = pictures[0], tmp_path/'locked'
    (locked/'inner').mkdir(parents=True)
    paths = [good, tmp_path/('x'*300 + '.jpg'), good/'below a file.jpg', 'nul\0.jpg', '~nosuchuser/cat.jpg', locked/'inner'/'cat.jpg', locked, good]
    locked.chmod(0)
    try:
        if os.access(locked, os.R_OK): paths.remove(locked) # root may look anywhere, and finds a folder without pictures
        said = predict(model, paths, bs=3)
    finally: locked.chmod(0o755)
    assert len(said) == len(paths) and all(s.error for s in said[1:-1]) and said[0].error is said[-1].error is None
    assert 'too long' in said[1].error and 'no such file' in said[2].error and said[0].top == said[-1].top


def test_a_locked_folder_inside_is_told(model, pictures, tmp_path, monkeypatch):
    "For root, to whom nothing is locked, the system's answer is played."
    (tmp_path/'open').mkdir(); (tmp_path/'shut').mkdir()
    (tmp_path/'open'/'a.jpg').write_bytes(pictures[0].read_bytes())
    real = os.scandir
    def refuse(path):
        if Path(path).name == 'shut': raise PermissionError(errno.EACCES, 'Permission denied')
        return real(path)
    monkeypatch.setattr(reader.os, 'scandir', refuse)
    said = predict(model, tmp_path)
    assert [Path(s.file).name for s in said] == ['a.jpg', 'shut'] and said[0].label is not None or said[0].top
    assert said[1].error.startswith('not permitted')


def test_names_cannot_play_with_a_terminal(model, pictures, tmp_path):
    said, = predict(model, [tmp_path/'a\x1b[2J\u202ecat.jpg'])
    assert said.file.endswith('a\x1b[2J\u202ecat.jpg') and str(said).startswith(reader.printable(tmp_path/'a')) and '\x1b' not in str(said) and '\u202e' not in str(said)


@pytest.mark.skipif(os.name == 'nt', reason='a script without suffix does not start there')
def test_a_drawing_in_postscript_starts_no_program(model, pictures, tmp_path, monkeypatch):
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'gs').write_text(f'#!/bin/sh\ntouch "{tmp_path}/it ran"\n')
    (tmp_path/'bin'/'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path/'bin'), prepend=os.pathsep)
    (tmp_path/'cat.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n')
    with Image.open(tmp_path/'cat.jpg') as im:
        monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', 'gs')
        with pytest.raises(Exception): im.load()
    assert (tmp_path/'it ran').exists(), 'asked in general, Pillow does start it'
    (tmp_path/'it ran').unlink()
    said = predict(model, [tmp_path/'cat.jpg', pictures[0]])
    assert 'inside is a PostScript drawing' in said[0].error and said[1].error is None and not (tmp_path/'it ran').exists()


def test_two_hundred_damaged_pictures(model, tmp_path):
    rng, im = random.Random(1), draw([BREEDS[0]], [1, 1]).resize((60, 50))
    whole = [encoded(im, f) for f in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF')] + [encoded(im, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0')]
    for i in range(200):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 8)): data[rng.randrange(min(len(data), rng.choice([60, 10**6])))] = rng.randrange(256)
        if rng.random() < .3: del data[rng.randrange(len(data)):]
        (tmp_path/f'{i:03}.png').write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        said = predict(model, tmp_path)
    assert len(said) == 200 and [Path(s.file).name for s in said] == sorted(p.name for p in tmp_path.iterdir())
    assert all((s.error is None) == (len(s.top) == 3) and (s.error is None or s.label is None) for s in said)
    assert 20 < sum(s.error is not None for s in said) < 200


def test_folders_thresholds_and_options(model, pictures, tmp_path):
    folder = pictures[0].parent
    assert [s.file for s in predict(model, folder)] == [str(p) for p in pictures]
    assert [s.file for s in predict(model, [pictures[3], folder, str(pictures[0])])] == [str(p) for p in (pictures[3], *pictures, pictures[0])]
    (tmp_path/'.hidden').mkdir()
    for name in ('._a.jpg', '.hidden/b.jpg', 'notes.txt'): (tmp_path/name).write_bytes(b'')
    with pytest.raises(ValueError, match='no pictures in this folder'): predict(model, tmp_path)
    assert predict(model, []) == []
    never, always = predict(model, pictures[:1], threshold=1.)[0], predict(model, pictures[:1], threshold=0., top=99)[0]
    assert never.label is None and 'not sure' in str(never) and never.probability == always.probability
    assert always.label == always.top[0][0] and len(always.top) == 3 and abs(sum(p for _, p in always.top) - 1) < 1e-5
    assert json.loads(json.dumps(saved.asdict(always)))['label'] == always.label
    for wrong in (dict(top=0), dict(threshold=2), dict(threshold=float('nan')), dict(bs=0), dict(bs=True)):
        with pytest.raises(ValueError, match='threshold'): predict(model, pictures, **wrong)
    for other in ('m.safetensors', torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match='not a loaded model'): predict(other, pictures)


def test_weights_out_of_range_give_no_label(file, pictures, tmp_path):
    about, tensors = parts(file)
    tensors['1.8.weight'] = torch.full_like(tensors['1.8.weight'], 3e38)
    model = load_model(write(tmp_path/'m.safetensors', signed(about, tensors), tensors))
    said = predict(model, pictures[0])[0]
    assert said.label is None and 'no finite answer' in said.error


def test_expected_classes(file):
    assert load_model(file, classes=sorted(NAMES)).about.classes == sorted(NAMES)
    with pytest.raises(ValueError, match='3 classes.*not the 2 asked for'): load_model(file, classes=['a', 'b'])


# ---- a machine that only predicts

def installed(names):
    "The distributions that pip would bring for these names: they and all that they require, without extras."
    found, waiting = {}, list(names)
    while waiting:
        name = re.match(r'[\w.-]+', waiting.pop())[0]
        key = re.sub(r'[-_.]+', '-', name).lower()
        if key in found: continue
        found[key] = metadata.distribution(name)
        needs = map(Requirement, found[key].requires or [])
        waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({'extra': ''})]
    return found


@pytest.mark.skipif(os.name == 'nt', reason='links want rights there')
def test_the_line_in_the_docs_is_all_that_predicting_needs(file, model, pictures, tmp_path):
    "A Python that sees the packages of that line, and no others, loads and predicts; without fastai, spaCy and weight packages."
    line, = re.findall(r'pip install (.+) && pip install --no-deps ch5clf\n', saved.__doc__)
    assert line in saved.save_model.__doc__
    found = installed(line.split())
    assert {'torch', 'timm', 'pillow', 'numpy', 'safetensors'} <= set(found) and not {'fastai', 'fastcore', 'spacy', 'pandas', 'matplotlib'} & set(found)
    site = tmp_path/'site'
    site.mkdir()
    for d in found.values():
        for top in {f.parts[0] for f in d.files} - {'..', '__pycache__'}:
            if not (site/top).exists(): (site/top).symlink_to(d.locate_file(top))
    (site/'ch5clf').symlink_to(Path(saved.__file__).parent)
    code = '''
import json, sys
sys.path.append(sys.argv[1])
import torch
rng = torch.get_rng_state()
from ch5clf.saved import load_model, predict
said = predict(load_model(sys.argv[2]), sys.argv[3])
assert torch.get_rng_state().equal(rng)
assert sorted(m for m in sys.modules if m.startswith('ch5clf')) == ['ch5clf', 'ch5clf.pictures', 'ch5clf.places', 'ch5clf.saved'], sys.modules.keys()
try: import fastai
except ImportError: print(json.dumps([(s.file, s.top) for s in said]))
'''
    command = [sys.executable, '-I', '-S', '-X', 'utf8', '-W', 'error::UserWarning', '-c', code, site, file, pictures[0].parent]
    r = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding='utf-8', cwd=tmp_path)
    assert r.returncode == 0 and r.stderr == '', r.stderr
    for (f, top), s in zip(json.loads(r.stdout), predict(model, pictures), strict=True):
        assert f == s.file and all(c == d and abs(p - q) < 1e-5 for (c, p), (d, q) in zip(top, s.top, strict=True))

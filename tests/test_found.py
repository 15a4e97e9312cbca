"What three readers found who looked for faults in the rooms of labels, pictures, training and saving."
import argparse
import io
import os
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ch5clf import cli, presize, training
from ch5clf.callbacks import TimeBudget
from ch5clf.data import check_images, pet_dls
from ch5clf.epochs import epoch_story
from ch5clf.features import feature_fit
from ch5clf.labels import read_folder
from ch5clf.photos import usable_images
from ch5clf.places import cache_folder, tell
from ch5clf.presize import presize_store
from ch5clf.recipe import logistic_regression
from ch5clf.saved import check_names, save_model
from ch5clf.tables import read_table
from ch5clf.pretrained import lite0
from fastai.vision.all import (Callback, CategoryBlock, DataBlock, ImageBlock, IntToFloatTensor, RandomResizedCrop, Resize, ToTensor,
                               aug_transforms, get_image_files, vision_learner)
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'.cache'))


def put(file, level=90, size=(60, 50)):
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    return file


@pytest.fixture
def photos(tmp_path):
    for k, breed in enumerate(('cat', 'dog')):
        for i in range(8): put(tmp_path/'photos'/breed/f'{i}.png', 20*k + i)
    return tmp_path/'photos'


# ---------------------------------------------------------------- folders and tables
def test_photos_below_the_cache_are_still_other_peoples(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path)) # "set CH5CLF_CACHE to another disk", where the photos lie too
    put(photos/'dog'/'again.png', 0) # the picture of cat/0.png
    dls = pet_dls(photos, size=32, presize=32, bs=4)
    assert '2 classes' in capsys.readouterr().out and len(dls.alike) == 2


def test_a_name_in_both_unicode_forms_is_said_to_be_there_twice(tmp_path):
    for form in ('NFC', 'NFD'): put(tmp_path/'p'/unicodedata.normalize(form, '고양이')/'0.png')
    put(tmp_path/'p'/'개'/'0.png')
    with pytest.raises(ValueError, match='twice'): pet_dls(tmp_path/'p')


@pytest.mark.parametrize('label, encoding', [('Ägyptische Mau', 'cp1252'), ('Águila', 'cp1252'), ('고양이', 'cp949'), ('똠방 고양이', 'cp949')])
def test_tables_of_western_and_korean_windows(label, encoding, tmp_path):
    (tmp_path/'t.csv').write_bytes(f'name;label\r\np1.jpg;{label}\r\n'.encode(encoding))
    assert label in set(read_table(tmp_path/'t.csv').iloc[:, 1])


def test_corrections_outlive_a_change_of_folder(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    dls = pet_dls('photos', size=32, presize=32, bs=4, labels={'cat/1.png': 'dog'})
    monkeypatch.chdir('/')
    told = {i.name if i.parent.name == 'cat' else '': dls.vocab[t[1]] for d in (dls.train_ds, dls.valid_ds) for i, t in zip(d.items, d)}
    assert told['1.png'] == 'dog' and told['2.png'] == 'cat'


def test_numbered_folders_are_classes_and_those_of_cameras_are_not(tmp_path):
    for name in ('001_crow', '002_wren', '003_hawk'):
        for sex in ('male_0', 'female_1'): put(tmp_path/'birds'/name/f'{sex}.png')
    assert set(read_folder(tmp_path/'birds').labels.values()) == {'001_crow', '002_wren', '003_hawk'}
    for i in range(2): put(tmp_path/'phone'/'DCIM'/'100CANON'/f'cat_{i}.png'), put(tmp_path/'phone'/'DCIM'/'101APPLE'/f'dog_{i}.png')
    assert set(read_folder(tmp_path/'phone').labels.values()) == {'cat', 'dog'}


def test_linked_class_folders_are_looked_at(tmp_path):
    for name in ('cat', 'dog'):
        put(tmp_path/'pets'/'.store'/name/'0.png')
        os.symlink(tmp_path/'pets'/'.store'/name, tmp_path/'pets'/name)
    put(tmp_path/'pets'/'bird'/'0.png')
    assert set(read_folder(tmp_path/'pets').labels.values()) == {'bird', 'cat', 'dog'}


def test_a_named_table_without_rows_is_refused(photos):
    for text in ('', 'name,label\n'):
        (photos/'mine.csv').write_text(text)
        with pytest.raises(ValueError, match='mine.csv'): read_folder(photos, labels='mine.csv')


def test_tables_of_the_sides_know_their_side(tmp_path):
    for side in ('train', 'test'):
        for i in range(3): put(tmp_path/'c'/side/f'{i}.png', i)
    (tmp_path/'c'/'train.csv').write_text('name,label\n0.png,cat\n1.png,dog\n2.png,cat\n')
    (tmp_path/'c'/'test.csv').write_text('name\n0.png\n1.png\n2.png\n')
    labels = {f.relative_to(tmp_path/'c').as_posix(): l for f, l in read_folder(tmp_path/'c').labels.items() if l}
    assert labels == {'train/0.png': 'cat', 'train/1.png': 'dog', 'train/2.png': 'cat'}


def test_a_broken_picture_may_be_left_out_by_name(photos):
    (photos/'cat'/'broken.png').write_bytes((photos/'cat'/'0.png').read_bytes()[:200])
    assert len(pet_dls(photos, size=32, presize=32, bs=4, leave_out=['cat/broken.png']).train_ds)
    for suffix in ('ppm', 'jp2'): put(photos/'cat'/f'Cat_0.{suffix}')
    assert 'name' not in set(check_images(photos).problem)


def test_a_failure_that_passes_is_not_kept(photos, monkeypatch):
    files, whole = usable_images(photos), presize.presized
    def away(f, *args): raise OSError(5, 'Input/output error')
    monkeypatch.setattr(presize, 'presized', away)
    assert len(presize_store(files, 40, None).problems) == len(files)
    monkeypatch.setattr(presize, 'presized', whole)
    assert not presize_store(files, 40, None).problems


def test_names_are_printed_on_any_stream(monkeypatch):
    for encoding in ('cp1252', 'cp949', 'ascii'):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, 'stdout', stream)
        tell('고양이 and Bichon Frisé')
        stream.flush()
        assert b'and Bichon Fris' in stream.buffer.getvalue()


def test_quotes_around_the_cache_are_no_part_of_it(monkeypatch, tmp_path):
    monkeypatch.setenv('CH5CLF_CACHE', f'"{tmp_path/"my cache"}"')
    assert cache_folder() == tmp_path/'my cache'


# ---------------------------------------------------------------- training
def test_a_class_that_cannot_be_saved_is_refused_before_the_training(photos, tmp_path):
    (photos/'labels.csv').write_text('name,label\n' + ''.join(f'{b}/{i}.png,\\{b}\n' for b in ('cat', 'dog') for i in range(8)))
    with pytest.raises(ValueError, match='no class name'): training.train_folder(photos, tmp_path/'m.safetensors', quiet=True)
    assert not list(tmp_path.glob('m.*'))
    with pytest.raises(ValueError): check_names(['a'*300])


def test_a_lock_file_of_somebody_else_stays(photos, tmp_path):
    (tmp_path/'uv.lock').write_text('mine')
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError): training.train_folder(tmp_path/'empty', tmp_path/'uv.safetensors', quiet=True)
    assert (tmp_path/'uv.lock').read_text() == 'mine'


def test_what_goes_on_goes_on_in_the_same_way():
    said = cli._go_on(argparse.Namespace(folder='d', out='d.safetensors', device='cpu', no_report=True))
    assert said == 'ch5clf train d --out d.safetensors --device cpu --no-report --resume'


def test_a_diverged_epoch_is_not_the_best():
    rows = [[1., .8, .5], [.9, .6, .4], [.8, float('nan'), .3]]
    recorder = SimpleNamespace(values=rows, metric_names=['epoch', 'train_loss', 'valid_loss', 'error_rate', 'time'], hps={'lr': [1.]*3}, lrs=[1.]*3, iters=[1, 2, 3])
    learn = SimpleNamespace(recorder=recorder, dls=SimpleNamespace(valid_ds=range(100), train=range(1)), metrics=[])
    assert epoch_story(learn, 'valid_loss').best == 2


def small_block(photos, item_tfms, **kwargs):
    return DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=lambda f: f.parent.name,
                     item_tfms=item_tfms, **kwargs).dataloaders(photos, bs=4, num_workers=0)


def test_time_that_could_never_end_is_refused(photos):
    dls = pet_dls(photos, size=32, presize=32, bs=4)
    dls.train.bs = 64
    dls.train.drop_last = True
    learn = vision_learner(dls, lite0)
    with pytest.raises(ValueError, match='one batch'), learn.no_bar(), learn.no_logging(): learn.fit(10**6, cbs=TimeBudget(.2))


def test_weights_of_classes_reach_the_probe():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=g), torch.arange(60) % 3
    plain, even = logistic_regression(x, y, 3), logistic_regression(x, y, 3, weights=torch.ones(3))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, even))
    rare = logistic_regression(x, y, 3, weights=torch.tensor([100., 1., 1.]))
    named = lambda head: (x@head[0].T + head[1]).argmax(1).bincount(minlength=3)
    assert named(rare)[0] > named(plain)[0]


def test_a_loader_that_chooses_its_pictures_chooses_features_too(photos):
    from fastai.callback.data import WeightedDL  # noqa: F401 (adds weighted_dataloaders)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=lambda f: f.parent.name)
    sets = block.datasets(photos)
    wgts = [0. if f.parent.name == 'cat' else 1. for f in sets.train.items]
    dls = sets.weighted_dataloaders(wgts, bs=4, num_workers=0, after_item=[Resize(32), ToTensor()], after_batch=[IntToFloatTensor()])
    learn = vision_learner(dls, lite0, normalize=False)
    seen = []
    class Seen(Callback):
        def after_batch(self):
            if self.training: seen.extend(self.yb[0].tolist())
    with learn.no_bar(), learn.no_logging(): feature_fit(learn, 1, 1e-3, cbs=Seen())
    assert seen and set(seen) == {learn.dls.vocab.o2i['dog']}


def test_a_model_that_validated_on_other_crops_is_not_saved(photos, tmp_path):
    dls = small_block(photos, RandomResizedCrop(32))
    with pytest.raises(ValueError, match='RandomResizedCrop'): save_model(vision_learner(dls, lite0), tmp_path/'m.safetensors')
    dls = small_block(photos, Resize(40), batch_tfms=aug_transforms(size=32))
    save_model(vision_learner(dls, lite0), tmp_path/'m.safetensors')


def test_what_was_read_is_told_in_every_report(photos):
    pet_dls(photos, size=32, presize=32, bs=4)
    settings = training.Settings(str(photos), size=32, bs=4)
    team = SimpleNamespace(first=True, decided=lambda f: f())
    _, said = training._loaders(settings, team, training.Talk(False), torch.device('cpu'))
    assert '2 classes' in said


def test_numbers_and_several_classes_are_told_by_the_command():
    number = SimpleNamespace(file='a.jpg', label=None, labels=(), value=3.5, top=[], probability=None, error=None, _told=lambda: '3.5')
    several = SimpleNamespace(file='b.jpg', label='cat', labels=('cat', 'dog'), value=None, error=None, probability=.9,
                              top=[('cat', .9), ('dog', .8), ('bird', .1)])
    assert cli._answer(number)[1] == '3.5' and cli._record(number)['value'] == 3.5
    assert cli._answer(several)[1:] == ('cat, dog', '90%, 80%', 'bird 10%') and cli._record(several)['labels'] == ['cat', 'dog']

"""One way to measure: equal to fastai's own for each kind of loader; a measurement on pictures that were not normalised does not pass."""
import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import (CategoryBlock, ColReader, ColSplitter, DataBlock, ImageBlock, MultiCategoryBlock, Normalize, Resize, accuracy,
                               aug_transforms, error_rate, get_image_files, set_seed, Learner)
from PIL import Image
from torch import nn

from ch5clf.data import pet_dls
from ch5clf.measure import measure

KINDS = dict(a=80, b=120, c=165)


def draw(folder, per_class, seed):
    rng = np.random.default_rng(seed)
    for kind, level in KINDS.items():
        (folder/kind).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.integers(level - 75, level + 75, (44, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder/kind/f'{i}.png')
    return get_image_files(folder).sorted()


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    draw(folder/'train', 12, 0)
    return folder/'train', draw(folder/'test', 9, 1)


def learner(dls, metrics=(error_rate, accuracy)):
    "A network behind `Normalize`, which is added when the learner is made, as `vision_learner` adds it."
    set_seed(3)
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 5, 3), nn.BatchNorm2d(6), nn.ReLU()),
                          nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    dls.add_tfms([Normalize.from_stats([.5]*3, [.15]*3)], 'after_batch')
    learn = Learner(dls, model, metrics=list(metrics))
    learn.remove_cbs(learn.cbs.filter(lambda c: c.name == 'progress'))
    learn.logger = lambda *_: None
    return learn


def batches(dls, files): return [tuple(t.as_subclass(torch.Tensor) for t in b) for b in dls.test_dl(files, with_labels=True)]


def count(learn, batches):
    learn.model.eval()
    with torch.no_grad(): return sum(int((learn.model(x).argmax(1) != y).sum()) for x, y in batches)


def check(learn, files, wrong):
    "What every number of wrong pictures must pass: fastai's own says the same."
    _, error, _ = learn.validate(dl=learn.dls.test_dl(files, with_labels=True))
    assert wrong == round(error*len(files)), f'{wrong} wrong by this way, {error*len(files):.0f} by learn.validate'


@pytest.mark.parametrize('cached', [False, True])
def test_equal_to_validate_and_the_old_way_is_not(sets, cached):
    path, files = sets
    dls = pet_dls(path, size=32, presize=40, bs=6, cached=cached)
    early = batches(dls, files)  # as `few` took them: before the learner adds Normalize
    learn = learner(dls)
    learn.fit_one_cycle(6, 1e-2)
    told = measure(learn, files)
    check(learn, files, told.wrong)
    assert told.wrong == count(learn, batches(learn.dls, files))  # batches that are taken afterwards are right
    assert told.loss == pytest.approx(learn.validate(dl=learn.dls.test_dl(files, with_labels=True))[0], rel=1e-5)
    with pytest.raises(AssertionError, match='by learn.validate'): check(learn, files, count(learn, early))


def test_batches_are_refused(sets):
    path, files = sets
    learn = learner(pet_dls(path, size=32, presize=40, bs=6))
    with pytest.raises(TypeError, match='before the learner was made'): measure(learn, batches(learn.dls, files))


@pytest.mark.parametrize('cached', [False, True])
def test_test_pictures_are_not_augmented_and_keep_their_order(sets, cached):
    path, files = sets
    learn = learner(pet_dls(path, size=32, presize=40, bs=6, cached=cached))
    a, b = (measure(learn, files, bs=bs).table for bs in (4, 27))
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-4)
    backwards = measure(learn, files[::-1]).table
    np.testing.assert_allclose(backwards.loss[::-1], a.loss, rtol=1e-4)
    assert a.label.tolist() == [f.parent.name for f in files] and (a.wrong == (a.label != a.prediction)).all()


def test_a_fit_that_skipped_validation_is_measured_all_the_same(sets):
    from ch5clf.callbacks import NoValidation
    path, files = sets
    learn = learner(pet_dls(path, size=32, presize=40, bs=6))
    learn.fit(1, 1e-2, cbs=NoValidation())
    check(learn, files, measure(learn, files).wrong)


def test_nothing_is_left_behind(sets):
    path, files = sets
    learn = learner(pet_dls(path, size=32, presize=40, bs=6))
    learn.fit(2, 1e-2)
    learn.model.train()
    held = learn.recorder.values, learn.recorder.losses, learn.recorder.lrs, list(learn.cbs)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    set_seed(5)
    measure(learn, files)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    set_seed(5)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    assert held == (learn.recorder.values, learn.recorder.losses, learn.recorder.lrs, list(learn.cbs)) and len(held[0]) == 2
    assert learn.model.training and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_rows_of_a_table(sets):
    path, files = sets
    train = get_image_files(path).sorted()
    rows = pd.DataFrame(dict(name=[str(f) for f in [*train, *files]], label=[f.parent.name for f in [*train, *files]]))
    rows['valid'] = [i % 4 == 0 for i in range(len(rows))]
    block = DataBlock((ImageBlock, CategoryBlock), get_x=ColReader('name'), get_y=ColReader('label'), splitter=ColSplitter('valid'), item_tfms=Resize(32))
    learn = learner(block.dataloaders(rows[:len(train)], bs=6, num_workers=0))
    told = measure(learn, rows[len(train):])
    assert told.total == len(files) and told.table.label.tolist() == [f.parent.name for f in files]


def test_only_one_label_a_picture(sets):
    path, files = sets
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=lambda f: [f.parent.name], item_tfms=Resize(32), batch_tfms=aug_transforms(size=32))
    learn = learner(block.dataloaders(path, bs=6, num_workers=0), metrics=())
    with pytest.raises(ValueError, match='one label a picture'): measure(learn, files)


def test_summary(sets):
    path, files = sets
    learn = learner(pet_dls(path, size=32, presize=40, bs=6))
    told = measure(learn, files)
    t = told.table
    assert told.error == told.wrong/27 and told.interval[0] < told.error < told.interval[1]
    np.testing.assert_allclose(t.probability, np.exp(-t.loss), rtol=1e-5)
    assert f'{told.wrong} of 27 wrong' in repr(told)
    other = ['cab'['abc'.index(label)] for label in t.label]
    assert measure(learn, files, other).wrong == (t.prediction != other).sum()

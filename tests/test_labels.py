"Labels, splits, loaders and suspicious labels: what the rooms labels, loaders and suspects promise about other people's folders."
import os
import pickle
import subprocess
import sys
import unicodedata
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ch5clf.data import breed_of, course_data, folder_of, labeller_for, pet_dls, suspicious_labels
from ch5clf.labels import Relabelled, splitter_for
from ch5clf.measure import measure
from ch5clf.photos import usable_images
from ch5clf.suspects import linear_probe, out_of_fold_logits
from fastai.vision.all import (BCEWithLogitsLossFlat, CategoryBlock, DataBlock, ImageBlock, ImageDataLoaders, IndexSplitter, Learner,
                               MultiCategoryBlock, Resize, aug_transforms, get_image_files, get_random_states, parent_label)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'.cache'))


def put(file, colour=(90, 90, 90), size=(60, 50)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(file)
    return file


@pytest.fixture
def own(tmp_path):
    "Two classes of ten pictures, a folder for each, with the same names in both."
    for c in ('cup', 'bowl'):
        for i in range(10): put(tmp_path/'own'/c/f'{i}.png', (20*i, 90 if c == 'cup' else 200, 90))
    return tmp_path/'own'


# ------------------------------------------------------------------ names
WORDS = st.from_regex(r'[A-Za-z가-힣]{1,8}', fullmatch=True).map(lambda w: 'Kt' + w)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3), st.integers(0, 10**6), st.sampled_from(['jpg', 'JPG', 'jpeg', 'png', 'webp', 'HEIC', 'tiff']),
       st.sampled_from(['NFC', 'NFD']))
def test_a_breed_comes_back_whatever_the_suffix_and_the_unicode_form(words, number, suffix, form):
    breed = unicodedata.normalize('NFC', '_'.join(words))
    assert breed_of(unicodedata.normalize(form, f'{breed}_{number}.{suffix}')) == breed
    assert breed_of(Path('IMG_1')/f'{breed}_{number}.{suffix}') == breed


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_name_gives_a_breed_or_says_why_not(name):
    try: breed = breed_of(name)
    except ValueError as e: assert 'Breed_name_12.jpg' in str(e)
    else: assert breed and any(c.isalpha() for c in breed) and breed == unicodedata.normalize('NFC', breed)


def test_the_home_folder_is_expanded_everywhere(own, monkeypatch):
    monkeypatch.setenv('HOME', str(own.parent)); monkeypatch.setenv('USERPROFILE', str(own.parent))
    files = usable_images(own)
    pd.DataFrame(dict(name=[f'{i}.png' for i in range(10)], split=['valid' if i == 3 else 'train' for i in range(10)])).to_csv(own/'labels.csv', index=False)
    assert labeller_for('~/own') is folder_of
    assert [files[i].name for i in splitter_for('~/own')(files)[1]] == ['3.png', '3.png']
    assert {f.name for f in pet_dls('~/own', size=16, presize=20, bs=4).valid_ds.items} == {'3.png'}


# ------------------------------------------------------------------ what chapters train on
def test_the_budget_of_own_photos_is_three_epochs(own, monkeypatch):
    monkeypatch.setenv('CH5CLF_DATA', str(own))
    data = course_data()
    assert (data.path, data.kind, data.epochs) == (own, 'own', 3)
    assert data.sizes == dict(size=128, presize=160, bs=32)
    assert data.labeller is folder_of and [len(p) for p in data.splitter(usable_images(own))] == [16, 4]


def test_the_budget_of_the_sample(monkeypatch):
    monkeypatch.delenv('CH5CLF_DATA', raising=False)
    monkeypatch.setattr('ch5clf.sample.paper_pets', lambda: Path('drawn'))
    data = course_data()
    assert (data.path, data.kind, data.epochs, data.sizes) == (Path('drawn'), 'sample', 2, dict(size=128, presize=160, bs=32))


def test_presize_may_equal_size_and_not_be_smaller(own):
    for cached in (True, False):
        assert pet_dls(own, size=24, presize=24, bs=4, cached=cached).one_batch()[0].shape[-2:] == (24, 24)
        with pytest.raises(ValueError, match='presize=23, size=24: presize must be at least size.*take presize=30'):
            pet_dls(own, size=24, presize=23, cached=cached)


def test_fastai_comes_along_with_the_data_module():
    from ch5clf.data import DataBlock, error_rate, lite0, vision_learner  # noqa: F401


# ------------------------------------------------------------------ corrections
def test_a_correction_belongs_to_one_picture(own, tmp_path):
    dls = pet_dls(own, size=16, presize=20, bs=4, labels={'cup/3.png': 'bowl'})
    said = {f.relative_to(own).as_posix(): dls.vocab[ds[i][1]] for ds in (dls.train_ds, dls.valid_ds) for i, f in enumerate(ds.items)}
    assert said['cup/3.png'] == 'bowl' and all(l == k.split('/')[0] for k, l in said.items() if k != 'cup/3.png')
    with pytest.raises(ValueError, match='3.png is the name of 2 pictures.*give paths below the folder, such as bowl/0.png'):
        pet_dls(own, size=16, presize=20, labels={'3.png': 'bowl'})
    with pytest.raises(ValueError, match='cup/77.png is no picture of this folder'):
        pet_dls(own, size=16, presize=20, labels={'cup/77.png': 'bowl'})


def test_test_pictures_of_the_same_name_keep_their_labels(tmp_path):
    "The first edition corrected by bare name, and 17 of 240 test pictures got the label of a training picture."
    for part, shift in (('train', 0), ('test', 100)):
        for i in range(10): put(tmp_path/part/f'{"ab"[i % 2]}_{i}.png', (20*i, shift, 90))
    dls = pet_dls(tmp_path/'train', size=16, presize=20, bs=4, labels={'a_0.png': 'b', 'b_1.png': 'a'})
    test = dls.test_dl(usable_images(tmp_path/'test'), with_labels=True)
    assert [dls.vocab[y] for _, ys in test for y in ys] == [breed_of(f) for f in usable_images(tmp_path/'test')]
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*16*16, 2)))
    with learn.no_bar(): told = measure(learn, usable_images(tmp_path/'test'))
    assert told.table.label.tolist() == [breed_of(f) for f in usable_images(tmp_path/'test')]


def test_names_in_pieces_are_the_same_names(tmp_path):
    for i in range(10): put(tmp_path/unicodedata.normalize('NFD', f'{"달별"[i % 2]}_{i}.png'), (20*i, 0, 0))
    files = usable_images(tmp_path)
    right = Relabelled(breed_of, {unicodedata.normalize('NFC', '달_0.png'): '별'}, tmp_path, files)
    assert Counter(map(right, files)) == {'별': 6, '달': 4}


def test_a_picture_is_the_same_by_a_relative_path(own, monkeypatch):
    right = Relabelled(folder_of, {'cup/3.png': 'bowl'}, own, usable_images(own))
    monkeypatch.chdir(own)
    assert right(Path('cup')/'3.png') == 'bowl' and right(Path('bowl')/'..'/'cup'/'3.png') == 'bowl'


@pytest.mark.parametrize('cached', [True, False])
def test_corrected_loaders_can_be_pickled_and_tell_no_path(own, cached):
    dls = pet_dls(own, size=16, presize=20, bs=4, cached=cached, labels={'cup/3.png': 'bowl'})
    again = pickle.loads(pickle.dumps(dls.train))
    assert len(again.dataset) == len(dls.train_ds)
    corrected = dls.train_ds.tls[1].tfms.fs[0]
    assert pickle.loads(pickle.dumps(corrected))(own/'cup'/'3.png') == 'bowl'
    assert str(own).encode() not in pickle.dumps(corrected)


@pytest.mark.slow
def test_workers_that_are_spawned_know_the_corrections(own, tmp_path):
    code = f'''
import multiprocessing as mp
from ch5clf.data import pet_dls
if __name__ == '__main__':
    mp.set_start_method('spawn', force=True)
    dls = pet_dls({str(own)!r}, size=16, presize=20, bs=4, num_workers=1, labels={{'cup/3.png': 'bowl'}})
    print(sum(len(x) for x, _ in dls.train), sum(len(x) for x, _ in dls.valid))
'''
    (tmp_path/'spawned.py').write_text(code, encoding='utf-8')
    r = subprocess.run([sys.executable, str(tmp_path/'spawned.py')], capture_output=True, text=True, env={**os.environ, 'PYTHONUTF8': '1'}, timeout=300)
    assert r.stdout.split() == ['16', '4'], r.stderr[-2000:]


# ------------------------------------------------------------------ splits
def test_a_declared_split_is_honoured_or_refused_by_name(own):
    files = usable_images(own)
    table = pd.DataFrame(dict(name=[f'{i}.png' for i in range(10)], split='train'))
    table.loc[:1, 'split'] = 'valid'
    table.to_csv(own/'labels.csv', index=False)
    assert {files[i].name for i in splitter_for(own)(files)[1]} == {'0.png', '1.png'}
    table[:9].to_csv(own/'labels.csv', index=False)
    with pytest.raises(ValueError, match=r'no row for 9.png \(2 missing\)'): splitter_for(own)


def test_a_random_split_is_drawn_by_its_seed(own):
    files = usable_images(own)
    parts = [tuple(splitter_for(own, seed)(files)[1]) for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2] and len(parts[0]) == 4


def test_too_few_pictures_are_refused_with_the_class(own):
    for f in list((own/'cup').iterdir())[1:]: f.unlink()
    with pytest.raises(ValueError, match='at least 5 pictures of each class are needed'):
        for seed in range(30): pet_dls(own, size=16, presize=20, seed=seed)


# ------------------------------------------------------------------ suspicious labels
RED = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.BatchNorm1d(3), torch.nn.Dropout(.5), torch.nn.Linear(3, 2))


@pytest.fixture
def coloured(tmp_path):
    "Twenty red and twenty blue pictures; three red ones lie in the blue folder. And a model that sees the redness."
    rng = np.random.default_rng(11)
    for i in range(40):
        red, where = i % 2, 'blue' if i in (1, 7, 33) else ('blue', 'red')[i % 2]
        (tmp_path/where).mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 60, (40, 50, 3), dtype=np.uint8) + np.array([150*red, 0, 150*(1-red)], np.uint8)).save(tmp_path/where/f'{i}.png')
    model = deepcopy(RED)
    with torch.no_grad():
        model[4].weight.copy_(torch.tensor([[-9., 0, 9], [9, 0, -9]])); model[4].bias.zero_()
    return tmp_path, model.train()


def loaders(path, splitter=IndexSplitter(range(0, 40, 4)), **kwargs):
    return DataBlock((ImageBlock, CategoryBlock), get_items=lambda p: get_image_files(p).sorted(), get_y=parent_label, splitter=splitter,
                     item_tfms=Resize(32), batch_tfms=aug_transforms(size=24, min_scale=.5)).dataloaders(path, bs=7, num_workers=0, **kwargs)


def test_wrong_labels_come_first_and_the_learner_stays_as_it_was(coloured):
    path, model = coloured
    learn = Learner(loaders(path), model, path=path)
    before, states, attributes = deepcopy(model.state_dict()), get_random_states(), set(vars(learn))
    table = suspicious_labels(learn, ds_idx=None, out_of_fold=False)
    assert {f.name for f in table.file[:3]} == {'1.png', '7.png', '33.png'} and (table.prediction[:3] == 'red').all() and (table.label[:3] == 'blue').all()
    assert list(table) == ['file', 'label', 'prediction', 'probability', 'loss', 'rank', 'part'] and len(table) == 40 and table['rank'].tolist() == list(range(1, 41))
    assert Counter(table.part) == {'train': 30, 'valid': 10} and table.loss.is_monotonic_decreasing
    assert np.allclose(np.exp(-table.loss), table.probability) and all(parent_label(f) == l for f, l in zip(table.file, table.label))
    assert suspicious_labels(learn, None, out_of_fold=False).equals(table) and suspicious_labels(learn, None, 4, False).equals(table[:4])  # no augmentation
    now = get_random_states()
    assert all(torch.equal(v, now[k]) if isinstance(v, torch.Tensor) else str(v) == str(now[k]) for k, v in states.items())
    assert all(m.training for m in model.modules()) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and set(vars(learn)) == attributes
    with learn.no_bar(): probs, targets = learn.get_preds(dl=learn.dls.test_dl(learn.dls.train_ds.items, with_labels=True))
    train = suspicious_labels(learn, 0, out_of_fold=False)
    assert np.allclose(np.sort(probs[range(30), targets].numpy()), np.sort(train.probability), atol=1e-6) and set(train.part) == {'train'}
    assert learn.dls.train_ds.split_idx == 0


def test_suspicious_labels_of_a_table_and_of_several_labels(coloured):
    path, model = coloured
    files = get_image_files(path).sorted()
    df = pd.DataFrame(dict(name=[f.relative_to(path).as_posix() for f in files], label=[f.parent.name for f in files]))
    dls = ImageDataLoaders.from_df(df, path, fn_col='name', label_col='label', item_tfms=Resize(24), bs=8, num_workers=0, seed=1)
    for out_of_fold in (True, False):
        table = suspicious_labels(Learner(dls, model, path=path), None, out_of_fold=out_of_fold)
        assert {Path(f).name for f in table.file[:3]} == {'1.png', '7.png', '33.png'}
    assert {Path(f).name for f in table.file[:3]} == {'1.png', '7.png', '33.png'} and all(Path(f).exists() for f in table.file)
    several = DataBlock((ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=lambda f: [f.parent.name], item_tfms=Resize(24)).dataloaders(path, bs=8, num_workers=0)
    model.train()
    with pytest.raises(ValueError, match='one label each'): suspicious_labels(Learner(several, model, loss_func=BCEWithLogitsLossFlat(), path=path))
    assert model.training


@pytest.mark.parametrize('out_of_fold', [True, False])
def test_suspicious_labels_of_the_course_loaders(coloured, out_of_fold):
    path, model = coloured
    table = suspicious_labels(Learner(pet_dls(path, size=32, presize=40, bs=8), model, path=path), None, out_of_fold=out_of_fold)
    assert {Path(f).name for f in table.file[:3]} == {'1.png', '7.png', '33.png'} and len(table) == 40
    assert all(Path(f).parent.name == l for f, l in zip(table.file, table.label))


def body_and_head(model):
    "RED as a body without parameters and a head."
    return torch.nn.Sequential(torch.nn.Sequential(model[0], model[1]), torch.nn.Sequential(*model[2:]))


def test_out_of_fold_finds_what_a_model_knows_by_heart(coloured):
    "A head that has learnt the wrong labels by heart hides them; judges that have not seen them do not."
    path, model = coloured
    dls = loaders(path)
    learn = Learner(dls, body_and_head(model), path=path)
    wrong = {'1.png', '7.png', '33.png'}
    before, states = deepcopy(learn.model.state_dict()), get_random_states()
    table = suspicious_labels(learn, None)
    assert {f.name for f in table.file[:3]} == wrong and list(table.part).count('valid') == 10
    assert suspicious_labels(learn, None).equals(table), 'no chance in it'
    now = get_random_states()
    assert all(torch.equal(v, now[k]) if isinstance(v, torch.Tensor) else str(v) == str(now[k]) for k, v in states.items())
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()) and all(m.training for m in learn.model.modules())
    with torch.no_grad(): learn.model[1][-1].weight.neg_()  # a head that has it all wrong
    assert suspicious_labels(learn, None).equals(table), 'the head of the learner is not asked'
    assert not suspicious_labels(learn, None, out_of_fold=False).equals(table)


def test_judges_have_not_seen_the_picture():
    "With features of pure noise nobody can judge: out of fold the probability of the label is chance, by heart it is not."
    rng = torch.Generator().manual_seed(0)
    x, y = torch.nn.functional.normalize(torch.randn(120, 300, generator=rng)), torch.arange(120) % 4
    p = out_of_fold_logits(x, y, 4).softmax(1)[range(120), y]
    by_heart = linear_probe(x, y, 4)(x).softmax(1)[range(120), y]
    assert p.mean() < .35 and by_heart.mean() > .5


HELD = {'1.png', *(f'{i}.png' for i in range(20, 29))}


def test_held_back_pictures_are_judged_by_the_training_part(coloured):
    path, model = coloured
    dls = loaders(path, lambda items: ([i for i, f in enumerate(items) if f.name not in HELD], [i for i, f in enumerate(items) if f.name in HELD]))
    learn = Learner(dls, body_and_head(model), path=path)
    table = suspicious_labels(learn, 1)
    wrong = {'1.png', '7.png', '33.png'} & {f.name for f in learn.dls.valid_ds.items}
    assert wrong and {f.name for f in table.file[:len(wrong)]} == wrong
    assert len(table) == 10 and set(table.part) == {'valid'}


def test_no_body_no_features(coloured):
    path, _ = coloured
    learn = Learner(loaders(path), torch.nn.Sequential(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*24*24, 2))), path=path)
    with pytest.raises(ValueError, match='out_of_fold=False'): suspicious_labels(learn)
    assert len(suspicious_labels(learn, out_of_fold=False)) == 30

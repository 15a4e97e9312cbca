"Labels, splits, loaders and suspicious labels: what the rooms labels, loaders and suspects promise about other people's folders."
import io
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
from ch5clf.data import breed_of, check_images, course_data, folder_of, labeller_for, pet_dls, suspicious_labels
from ch5clf.labels import Relabelled, _draw, read_folder, splitter_for
from ch5clf.measure import measure
from ch5clf.photos import ABOUT_LABELS, usable_images
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
    assert r.stdout.split()[-2:] == ['16', '4'], r.stderr[-2000:]


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
    with pytest.raises(ValueError, match='each class needs two pictures or more, one for each side'):
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


# ------------------------------------------------------------------ tables, however they are saved
NAMES = ['name', 'file_name', 'filename', 'fname', 'Image', 'image_id', 'ID', 'path', '파일명']
LABELS = ['label', 'class', 'Breed', 'category', '품종']
SPLITS = {'split': ('train', 'valid'), 'set': ('Training', 'VAL'), 'is_valid': ('False', 'True'), 'Subset': ('trn', 'Validation'),
          '구분': ('훈련', '검증'), 'isValid': ('0', '1'), 'partition': ('TRAIN', 'dev')}
TRUTH = {f'사진 {i:03}': ('강아지', '고양이')[i % 2] for i in range(12)}
HELD_BACK = [*TRUTH][:4]


def table_bytes(name, label, split, separator, encoding, form, spelling, one_hot=False):
    "The same table in one of many dresses; `spelling` turns the stem into the name of a picture."
    classes = sorted(set(TRUTH.values()))
    head = [name, *(classes if one_hot else [label]), split]
    rows = [[spelling(stem), *([f'{float(c == said)}' for c in classes] if one_hot else [said]), SPLITS[split][stem in HELD_BACK]]
            for stem, said in TRUTH.items()]
    text = ''.join(separator.join(row) + '\r\n' for row in [head, *rows])
    return unicodedata.normalize(form if encoding != 'cp949' else 'NFC', text).encode(encoding)


@pytest.fixture(scope='module', params=['NFC', 'NFD'])
def dressed(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('dressed')
    for i, stem in enumerate(TRUTH): put(path/'images'/unicodedata.normalize(request.param, f'{stem}.png'), (20*i, 90, 90))
    return path


SPELLINGS = [lambda s: s, lambda s: f'{s}.png', lambda s: f'images/{s}.png', lambda s: f'images\\{s}.png', lambda s: f'/old/disk/images/{s}.png']


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(LABELS), st.sampled_from([*SPLITS]), st.sampled_from(',;\t'), st.booleans(),
       st.sampled_from(['utf-8', 'utf-8-sig', 'cp949', 'utf-16', 'utf-16-le', 'utf-16-be']), st.sampled_from(['NFC', 'NFD']),
       st.sampled_from(SPELLINGS), st.sampled_from(['labels.csv', 'Metadata.csv', 'train.csv']))
def test_a_table_means_the_same_in_every_dress(dressed, name, label, split, separator, one_hot, encoding, form, spelling, file):
    for old in dressed.glob('*.csv'): old.unlink()
    (dressed/file).write_bytes(table_bytes(name, label, split, separator, encoding, form, spelling, one_hot))
    folder = read_folder(dressed)
    assert {unicodedata.normalize('NFC', f.stem): folder.labeller(f) for f in folder.files} == TRUTH
    train, valid = folder.splitter()(folder.files)
    assert sorted(unicodedata.normalize('NFC', folder.files[i].stem) for i in valid) == HELD_BACK and len(train) == 8
    assert file in folder.said and '8 to train on, 4 held back' in folder.said


@pytest.mark.parametrize('dress', [('fname', 'category', 'is_valid', ';', 'cp949', 'NFC', SPELLINGS[1]), ('image_id', '품종', '구분', '\t', 'utf-16', 'NFD', SPELLINGS[0], True)])
def test_loaders_by_a_table(dressed, dress, capsys):
    for old in dressed.glob('*.csv'): old.unlink()
    (dressed/'mine.txt').write_bytes(table_bytes(*dress))
    dls = pet_dls(dressed, size=16, presize=20, bs=4, labels='mine.txt')
    assert list(dls.vocab) == ['강아지', '고양이'] and (len(dls.train_ds), len(dls.valid_ds)) == (8, 4)
    assert dls.said in capsys.readouterr().out and 'mine.txt' in dls.said
    assert all(dls.vocab[ds[i][1]] == TRUTH[unicodedata.normalize('NFC', f.stem)] for ds in (dls.train_ds, dls.valid_ds) for i, f in enumerate(ds.items))
    assert len(pickle.loads(pickle.dumps(dls.train)).dataset) == 8


def test_rows_of_one_name_are_told_by_their_labels_folder_or_refused(own):
    rows = [dict(name=f'{i}.png', label=c, split='valid' if i < 2 else 'train') for c in ('cup', 'bowl') for i in range(10)]
    pd.DataFrame(rows).to_csv(own/'labels.csv', index=False)
    folder = read_folder(own)
    assert folder.labeller is folder_of and len(folder.splitter()(folder.files)[1]) == 4
    pd.DataFrame(rows).replace('cup', 'mug').to_csv(own/'labels.csv', index=False)
    with pytest.raises(ValueError, match='0.png is the name of 2 pictures; write paths below the folder, such as bowl/0.png'): read_folder(own)
    pd.DataFrame([{**r, 'name': f"{r['label']}/{r['name']}"} for r in rows]).to_csv(own/'labels.csv', index=False)
    assert len(read_folder(own).splitter()(folder.files)[1]) == 4


@pytest.mark.parametrize('text, why', [
    ('photo_no,day\n1,Monday\n', 'not understood; its columns are photo_no, day; wanted are a column of file names'),
    ('name,label\nx.png,cup\n', "no row means a picture of this folder; the first is 'x.png', a picture is 'bowl/0.png'"),
    ('name,split\ncup/0.png,train\ncup/1.png,someday\n', "row 2 has 'someday' in the column split, which is no side"),
    ('name,split\ncup/0.png,True\n', "row 1 has 'True' in the column split"),
    ('name,label\ncup/0.png,cup\ncup/0.png,bowl\n', 'two rows for cup/0.png disagree'),
    ('name,label\ncup/0.png,cup\n', r'no row for .*\.png \(19 missing\)'),
    ('name,label\ncup/0.png,cup,1\n', 'the row of cup/0.png has more cells'),
    ('PK\3\4', 'a workbook, not a text table; save it as CSV')])
def test_a_table_that_is_not_understood_is_named(own, text, why):
    (own/'labels.csv').write_text(text, encoding='utf-8')
    with pytest.raises(ValueError, match=why): read_folder(own)
    with pytest.raises(ValueError, match='labels.csv'): pet_dls(own, size=16, presize=20)
    rows = check_images(own)
    assert rows[rows.problem.isin(ABOUT_LABELS)].file.isin(['labels.csv', *(f.relative_to(own).as_posix() for f in own.rglob('*.png'))]).all()
    assert rows.problem.isin(ABOUT_LABELS).any() and not rows[rows.problem.isin(ABOUT_LABELS)].usable.any()
    assert len(read_folder(own, labels=False).files) == 20


def test_a_table_that_lists_most_of_the_pictures_means_those(own):
    "Said, in the table of troubles, never trained on, before and after corrections; not where names may be misspelt."
    names = [f'{c}/{i}.png' for c in ('cup', 'bowl') for i in range(10)]
    def write(n, *more): (own/'labels.csv').write_text('name,label\n' + ''.join(f'{n},{n[:3]}\n' for n in [*names[20-n:], *more]), encoding='utf-8')
    write(18)
    folder, out = read_folder(own), [own/n for n in names[:2]]
    assert folder.unlisted == out and not {*out} & {*folder.files} and '2 pictures without a row in labels.csv left out (such as 0.png)' in folder.said
    dls = pet_dls(own, size=16, presize=20, bs=4)
    assert not {*out} & {*dls.train.items, *dls.valid.items} and len(dls.train.items) + len(dls.valid.items) == 18
    folder = read_folder(own, labels={'cup/5.png': 'bow'}) # what LabelFixes.labels would give: the same pictures, one corrected
    assert folder.unlisted == out and len(folder.files) == 18 and folder.labels[own/'cup'/'5.png'] == 'bow'
    folder = read_folder(own, labels={names[0]: 'cup'}) # a label for one of them takes it in
    assert folder.unlisted == out[1:] and out[0] in {*folder.files}
    assert read_folder(own, labels=lambda p: p.parent.name[:3]).unlisted == []
    rows = check_images(own)
    rows = rows[rows.problem == 'no label']
    assert {*rows.file} == {*names[:2]} and not rows.usable.any()
    write(18, 'cup/x.png') # a name may be misspelt
    with pytest.raises(ValueError, match=r'no row for 0.png \(2 missing\)'): read_folder(own)
    write(10)
    with pytest.raises(ValueError, match='10 missing'): read_folder(own)


def test_a_broken_picture_keeps_its_row(own):
    "The row of dog/1 must not fall to cat/1 because dog/1 cannot be read."
    (own/'cup'/'3.png').write_bytes(b'')
    (own/'labels.csv').write_text('name,label\n' + ''.join(f'{c}/{i}.png,{c}\n' for c in ('cup', 'bowl') for i in range(10)), encoding='utf-8')
    folder = read_folder(own)
    assert folder.lost == 0 and len(folder.files) == 19
    (own/'labels.csv').write_text('name,label\n' + ''.join(f'{i}.png,jug\n' for i in range(3, 10)), encoding='utf-8')
    with pytest.raises(ValueError, match='3.png is the name of 2 pictures'): read_folder(own)


def test_tables_of_kaggle_and_of_hugging_face(tmp_path):
    for i in range(20): put(tmp_path/'kaggle'/'train'/f'{i:04}.png', (10*i, 90, 90))
    for i in range(5): put(tmp_path/'kaggle'/'test'/f'{i:04}.png', (10*i, 200, 90))
    (tmp_path/'kaggle'/'train.csv').write_text('id,breed\n' + ''.join(f'{i:04},{"ab"[i % 2]}\n' for i in range(20)), encoding='utf-8')
    folder = read_folder(tmp_path/'kaggle')
    assert len(folder.files) == 20 and folder.classes == ['a', 'b'] and '5 test pictures kept out, unlabelled' in folder.said
    three = tmp_path/'three'
    for i in range(24): put(three/'photos'/f'{i}.png', (10*i, 90, 90))
    for part, numbers in dict(train=range(12), val=range(12, 18), test=range(18, 24)).items():
        (three/f'{part}.csv').write_text('image\tclass\n' + ''.join(f'{i}\t{"ab"[i % 2]}\n' for i in numbers), encoding='utf-16')
    folder = read_folder(three)
    assert [[folder.files[i].stem for i in p] for p in folder.splitter()(folder.files)] == [sorted(map(str, r)) for r in (range(12), range(12, 18))]
    (three/'test.csv').write_text('image\n' + ''.join(f'{i}\n' for i in range(18, 24)), encoding='utf-8')
    assert len(read_folder(three).files) == 18 and 'unlabelled' in read_folder(three).said
    for part, n in dict(train=8, validation=4, test=4).items():
        for i in range(n): put(tmp_path/'hf'/part/f'{i}.png', (20*i, 20*n, 90))
        (tmp_path/'hf'/part/'metadata.csv').write_text('file_name,label\n' + ''.join(f'{i}.png,{"ab"[i % 2]}\n' for i in range(n)), encoding='utf-8')
    folder = read_folder(tmp_path/'hf')
    assert [len(p) for p in folder.splitter()(folder.pictures)] == [8, 4] and folder.classes == ['a', 'b'] and len(folder.pictures) == 16


# ------------------------------------------------------------------ layouts of folders
@pytest.mark.parametrize('train, valid, test', [('train', 'valid', 'test'), ('Training', 'Validation', 'Testing'), ('TRAIN', 'val', 'TEST'),
                                                ('training_set', 'dev', 'test_set'), ('훈련', '검증', '시험'), ('학습', '검증용', '테스트')])
def test_declared_folders_stand(tmp_path, train, valid, test):
    for part, n in ((train, 6), (valid, 3), (test, 4)):
        for c in ('cat', 'dog'):
            for i in range(n): put(tmp_path/unicodedata.normalize('NFD', part)/c/f'{i}.png', (20*i, 30*n, 90 if c == 'cat' else 5))
    dls = pet_dls(tmp_path, size=16, presize=20, bs=4)
    where = [{unicodedata.normalize('NFC', f.parent.parent.name) for f in ds.items} for ds in (dls.train_ds, dls.valid_ds)]
    assert where == [{train}, {valid}] and list(dls.vocab) == ['cat', 'dog'] and '8 test pictures kept out' in dls.said
    with pytest.raises(ValueError, match='valid_pct=0.3: the set itself declares'): pet_dls(tmp_path, size=16, presize=20, valid_pct=.3)
    put(tmp_path/'cat'/'extra.png')
    with pytest.raises(ValueError, match='1 pictures lie neither in train/ nor in valid/, such as cat/extra.png'): read_folder(tmp_path)
    assert 'split' in set(check_images(tmp_path).problem)


@pytest.mark.parametrize('names, problem, why', [
    ('cat/in/{}.png cat/out/{}.png dog/in/{}.png dog/out/{}.png', 'nested folders', 'the class may be cat or in'),
    ('cat/{}.png dog/{}.png dog/batch2/{}.png', 'nested folders', 'dog/batch2: the class may be dog or batch2'),
    ('Cat/{}.png cat/{}.png dog/{}.png', 'like classes', "'Cat', 'cat' differ only in case or spaces"),
    ('cat/{}.png cat_/{}.png dog/{}.png', 'like classes', "'cat', 'cat_' differ"),
    ('cat_{}.png Cat_2{}.png dog_{}.png', 'like classes', "'Cat', 'cat' differ"),
    ('cat_{}.png', 'one class', '8 pictures of a single class .cat.; at least two classes are needed'),
    ('cat/{}.png', 'one class', '8 pictures of a single class .cat.'),
    ('2024-05-01/{}.png 2024-05-02/{}.png', 'no label', '16 of 16 pictures have no label'),
    ('May_2024/{}.png June_2024/{}.png', 'no label', '16 of 16 pictures have no label'),
    ('12-May-2024/{}.png 13-May-2024/{}.png', 'no label', '16 of 16 pictures have no label'),
    ('20240501/{}.png 20240502/{}.png', 'no label', '16 of 16 pictures have no label'),
    ('cat/{}.png dog/{}.png {}.png', 'no label', '8 of 24 pictures have no label'),
    ('IMG_{}.png P101002{}_1.png', 'no label', 'have no label'),
    ('test/a_{}.png', 'split', 'all 8 pictures are test pictures'),
    ('valid/a_{}.png valid/b_{}.png', 'split', 'all 16 pictures are held back, none is there to train on')])
def test_what_would_be_guessed_is_refused_and_has_a_row(tmp_path, names, problem, why):
    for k, name in enumerate(names.split()):
        for i in range(8): put(tmp_path/name.format(i), (20*i, 50*k, 90))
    with pytest.raises(ValueError, match=why): read_folder(tmp_path)
    with pytest.raises(ValueError, match=why): pet_dls(tmp_path, size=16, presize=20)
    rows = check_images(tmp_path)
    assert problem in set(rows.problem) and not rows[rows.problem == problem].usable.any() and rows.remedy.str.len().all()


def test_a_function_says_which_folder_is_the_class(tmp_path):
    for c in ('cat', 'dog'):
        for sub in ('in', 'out'):
            for i in range(6): put(tmp_path/c/sub/f'{i}.png', (20*i, 90 if c == 'cat' else 3, 90 if sub == 'in' else 3))
    dls = pet_dls(tmp_path, size=16, presize=20, bs=4, labels=lambda file: file.parts[0], group=lambda file: file.parts[1] + file.stem)
    assert list(dls.vocab) == ['cat', 'dog'] and len(pickle.loads(pickle.dumps(dls.train)).dataset) == len(dls.train_ds)
    assert all(dls.vocab[ds[i][1]] == f.parts[-3] for ds in (dls.train_ds, dls.valid_ds) for i, f in enumerate(ds.items))


PIECES = ['train', 'Valid', 'test', 'images', 'cat', 'dog', 'Cat', 'cat ', '강아지', '2024-05-01', 'indoor', 'DCIM', '검증', 'IMG_1', 'data']
FILES = ['cat_{}.png', 'dog_{}.png', 'IMG_{}.png', '{}.png', 'Cat_{}.png', '말티즈_20240501_1234{}.png', '고양이_{}.png', 'test_{}.png']
LAYOUTS = st.lists(st.tuples(st.lists(st.sampled_from(PIECES), max_size=3), st.sampled_from(FILES), st.integers(1, 7)), min_size=1, max_size=5)


@pytest.fixture(scope='module')
def pixels():
    "Twenty different pictures of nine pixels, as bytes."
    out = []
    for i in range(20):
        b = io.BytesIO(); Image.new('RGB', (3, 3), (i, 9, 9)).save(b, 'PNG'); out.append(b.getvalue())
    return out


@settings(max_examples=300, deadline=None, derandomize=True)
@given(LAYOUTS, st.booleans(), st.integers(0, 9))
def test_any_layout_is_understood_or_refused_in_our_words(tmp_path_factory, pixels, layout, table, seed):
    path = tmp_path_factory.mktemp('layout', numbered=True)
    for k, (folders, name, n) in enumerate(layout):
        path.joinpath(*folders).mkdir(parents=True, exist_ok=True)
        for i in range(n): path.joinpath(*folders, name.format(10*k + i)).write_bytes(pixels[(k + i) % 20])
    pictures = sorted(path.rglob('*.png'))
    if table: (path/'labels.csv').write_text('file;class\n' + ''.join(f'{f.relative_to(path)};{"ab"[i % 2]}\n' for i, f in enumerate(pictures)), encoding='cp949')
    rows = check_images(path)
    told = rows.problem.isin(ABOUT_LABELS)
    try: folder = read_folder(path)
    except ValueError as e:
        assert told.any() and not rows[told].usable.any(), e
        assert ('; ' in str(e)) and str(path) in str(e) or 'labels.csv' in str(e), e
        return
    assert not told.any(), rows[told]
    train, valid = folder.splitter(seed)(folder.pictures)
    test = {i for i, f in enumerate(folder.pictures) if folder.sides[f] == 'test'}
    assert not set(train) & set(valid) and sorted([*train, *valid, *test]) == [*range(len(pictures))] and not test & {*train, *valid}
    labels = {f: folder.labeller(f) for f in folder.files}
    assert labels == {f: folder.labels[f] for f in folder.files} and labeller_for(path)(folder.files[0]) == labels[folder.files[0]]
    if not folder.declared:
        twice = {c for c, n in Counter(labels.values()).items() if n > 1}
        assert all(twice <= {folder.labels[folder.pictures[i]] for i in part} for part in (train, valid))
    try: dls = pet_dls(path, size=8, presize=8, bs=2, seed=seed)
    except ValueError as e: assert str(path) in str(e) and '; ' in str(e)
    else: assert {folder.pictures[i] for i in train} == set(dls.train_ds.items) and {folder.pictures[i] for i in valid} == set(dls.valid_ds.items)


# ------------------------------------------------------------------ groups, shares, sizes, corrections
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from('abc'), st.integers(0, 6)), min_size=6, max_size=60), st.integers(0, 9), st.sampled_from([.1, .2, .5]))
def test_a_group_is_never_on_both_sides(pictures, seed, pct):
    labels, groups = [c for c, _ in pictures], [g for _, g in pictures]
    keys = [f'{c}/{i}' for i, c in enumerate(labels)]
    valid = _draw(keys, labels, groups, pct, seed)
    assert not {groups[i] for i in valid} & {groups[i] for i in range(len(keys)) if i not in valid}
    assert {labels[i] for i in valid} <= {labels[i] for i in range(len(keys)) if i not in valid}
    alone = _draw(keys, labels, [*range(len(keys))], pct, seed)
    assert Counter(labels[i] for i in alone) == {c: min(max(round(pct*n), 1), n-1) for c, n in Counter(labels).items() if n > 1}


def test_groups_by_a_column_and_declared_splits(own):
    rows = pd.DataFrame(dict(name=[f'{c}/{i}.png' for c in ('cup', 'bowl') for i in range(10)], owner=[f'o{i//3}' for i in range(20)]))
    rows.to_csv(own/'labels.csv', index=False)
    with pytest.raises(ValueError, match='its columns are name, owner'): pet_dls(own, size=16, presize=20)
    dls = pet_dls(own, size=16, presize=20, bs=4, group='owner')
    owner = dict(zip(rows.name, rows.owner))
    sides = [{owner[f.relative_to(own).as_posix()] for f in ds.items} for ds in (dls.train_ds, dls.valid_ds)]
    assert not sides[0] & sides[1] and all({f.parent.name for f in ds.items} == {'cup', 'bowl'} for ds in (dls.train_ds, dls.valid_ds))
    with pytest.raises(ValueError, match="group='owner': .*the table beside the pictures is not there"): pet_dls(own, size=16, presize=20, group='owner', labels=False)
    rows.assign(split=['valid' if i % 5 == 0 else 'train' for i in range(20)]).to_csv(own/'labels.csv', index=False)
    with pytest.raises(ValueError, match='the declared split has the group o0 on both sides'): pet_dls(own, size=16, presize=20, group='owner')


def test_a_data_frame_with_a_split_stands_for_the_table(own):
    frame = pd.DataFrame(dict(path=[f'{c}/{i}.png' for c in ('cup', 'bowl') for i in range(10)], label=['x', 'y']*10, is_valid=[i % 10 < 2 for i in range(20)]))
    dls = pet_dls(own, size=16, presize=20, bs=4, labels=frame)
    assert list(dls.vocab) == ['x', 'y'] and {f.stem for f in dls.valid_ds.items} == {'0', '1'}
    with pytest.raises(ValueError, match='1 of 20 pictures have no label'): read_folder(own, labels=frame.assign(label=[None, *frame.label[1:]]))
    frame['is_test'] = [i % 10 == 1 for i in range(20)]
    assert len(read_folder(own, labels=frame).files) == 18


@pytest.mark.parametrize('bs', [1, 0, -4, 2.5, None, True, 'ten'])
def test_batch_sizes_that_are_none(own, bs):
    with pytest.raises(ValueError, match='bs=.*whole number of pictures, 2 or more; take bs=32'): pet_dls(own, size=16, presize=20, bs=bs)


def test_the_share_held_back(own):
    assert len(pet_dls(own, size=16, presize=20, bs=4, valid_pct=.4).valid_ds) == 8
    for pct in (0, 1, -1, 3):
        with pytest.raises(ValueError, match='a share between 0 and 1'): pet_dls(own, size=16, presize=20, valid_pct=pct)


@pytest.mark.parametrize('kind', [dict, pd.Series, lambda d: pd.DataFrame(dict(label=d)), lambda d: pd.DataFrame(dict(image=[*d], breed=[*d.values()]))])
def test_corrections_of_every_kind(own, kind):
    folder = read_folder(own, labels=kind({'cup/3.png': 'bowl', 'bowl/1.png': 'cup'}))
    assert {f.relative_to(own).as_posix() for f in folder.files if folder.labeller(f) != f.parent.name} == {'cup/3.png', 'bowl/1.png'}
    with pytest.raises(ValueError, match='cup/3.png has no label'): read_folder(own, labels=kind({'cup/3.png': float('nan')}))
    with pytest.raises(ValueError, match=r'bowll is the label of no picture here \(did you mean bowl\?\); give new_classes=True'):
        read_folder(own, labels=kind({'cup/3.png': 'bowll'}))
    assert read_folder(own, labels=kind({'cup/3.png': 'jug', 'cup/4.png': 'jug'}), new_classes=True).classes == ['bowl', 'cup', 'jug']

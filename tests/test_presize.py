"""The presized store under a killed writer, two writers at once, other versions and strange pictures."""
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from ch5clf.presize import VERSION, PresizeDL, Store, clear, presize_store, presized, stores_folder, warp

MAKE = 'import sys; from pathlib import Path; from ch5clf.presize import presize_store; s = presize_store(sorted(Path(sys.argv[1]).glob("*.png")), 64, progress=False); print(len(s), s.file.name, flush=True)'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'


def pictures(folder, n, side=96):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n): Image.fromarray(rng.integers(0, 256, (side, side + i % 40, 3), dtype=np.uint8)).save(folder/f'a_{i}.png')
    return sorted(folder.glob('*.png'))


def writer(folder): return subprocess.Popen([sys.executable, '-c', MAKE, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='kill -9 is POSIX')
def test_killed_writer_leaves_a_working_next_run(cache, tmp_path):
    files = pictures(tmp_path/'many', 900, 200)
    p = writer(tmp_path/'many')
    for _ in range(6000):
        parts = list(stores_folder().glob('*.part')) if stores_folder().exists() else []
        if parts and parts[0].stat().st_size > 100_000: break
        time.sleep(.01)
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    left = list(stores_folder().iterdir())
    assert [f.suffix for f in left] == ['.part'], 'it was killed while writing'
    store = presize_store(files, 64, progress=False)
    for f in files[::100]: assert (store[f] == presized(f, 64)).all()
    os.utime(left[0], (1, 1))
    presize_store(files[:5], 64, progress=False)
    assert not left[0].exists(), 'an hour later its leftovers are swept'


@pytest.mark.slow
def test_two_processes_build_the_same_store(cache, tmp_path):
    files = pictures(tmp_path/'many', 300)
    both = [writer(tmp_path/'many') for _ in range(2)]
    out = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], out
    assert out[0][0] == out[1][0]
    assert [f.suffix for f in stores_folder().iterdir()] == ['.store']
    store = presize_store(files, 64)
    assert (store[files[7]] == presized(files[7], 64)).all()


def test_a_changed_picture_is_another_store(cache, tmp_path):
    files = pictures(tmp_path/'few', 3)
    first = presize_store(files, 64)
    Image.new('RGB', (90, 80), 'red').save(files[1])
    second = presize_store(files, 64)
    assert first.file != second.file and second[files[1]].mean(axis=(0, 1)).tolist() == [255, 0, 0]


def test_duplicates_share_a_row_and_empty_sets_are_fine(cache, tmp_path):
    files = pictures(tmp_path/'few', 2)
    copy = files[0].with_name('copy_9.png')
    copy.write_bytes(files[0].read_bytes())
    store = presize_store([*files, copy], 64)
    assert len(store) == 3 and len(store.index['pictures']) == 2 and (store[copy] == store[files[0]]).all()
    assert len(presize_store([], 64)) == 0


@pytest.mark.parametrize('damage', [lambda b: b[:-1], lambda b: b[:len(b)//2], lambda b: b'', lambda b: b[:-30] + b'x'*30, lambda b: b + b'more'])
def test_a_damaged_store_is_made_again(cache, tmp_path, damage):
    files = pictures(tmp_path/'few', 4)
    file = presize_store(files, 64).file
    file.write_bytes(damage(file.read_bytes()))
    store = presize_store(files, 64)
    assert all((store[f] == presized(f, 64)).all() for f in files)


def test_unused_stores_go_after_30_days_with_a_word(cache, tmp_path, capsys):
    files = pictures(tmp_path/'few', 2)
    old = presize_store(files, 64).file
    os.utime(old, (time.time() - 31*86400,)*2)
    new = presize_store(files, 48).file
    assert not old.exists() and new.exists() and 'not used for 30 days' in capsys.readouterr().out
    assert clear() > 0 and not list(stores_folder().glob('*.store'))


def test_a_full_disk_says_so(cache, tmp_path, monkeypatch):
    import shutil
    files = pictures(tmp_path/'few', 2)
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: real(p)._replace(free=100))
    with pytest.raises(OSError, match=r'2 pictures at presize=64 need .* GB are free; make room, set CH5CLF_CACHE'): presize_store(files, 64)
    assert not list(stores_folder().glob('*'))


def test_a_pickled_store_opens_again_or_is_none(cache, tmp_path):
    files = pictures(tmp_path/'few', 2)
    store = presize_store(files, 64)
    assert (pickle.loads(pickle.dumps(store))[files[0]] == store[files[0]]).all()
    gone = pickle.dumps(store)
    del store
    clear()
    assert pickle.loads(gone) is None


def test_version_is_part_of_the_name(cache, tmp_path, monkeypatch):
    files = pictures(tmp_path/'few', 2)
    before = presize_store(files, 64).file
    monkeypatch.setattr('ch5clf.presize.VERSION', VERSION + 1)
    assert presize_store(files, 64).file != before


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(0, 2**31))
def test_any_picture_and_any_draw_give_a_full_result(h, w, size, seed):
    "Also one pixel wide, panoramas, and homographies that reach far outside."
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    H = np.eye(3) + rng.normal(0, [[.6, .6, 1], [.6, .6, 1], [.1, .1, 0]], (3, 3))
    out = warp(picture, H, rng.random(2), size)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    assert picture.min() <= out.min() and out.max() <= picture.max()


@pytest.mark.slow
def test_every_part_of_fastai_works_with_it(cache, tmp_path):
    "fit, get_preds on both halves, predict, show_results, interpretation, export and load, worker processes."
    import matplotlib
    matplotlib.use('agg')
    from ch5clf.data import pet_dls
    from fastai.vision.all import ClassificationInterpretation, Learner, PILImage, load_learner, nn
    rng = np.random.default_rng(0)
    for i in range(60):
        a = np.full((70, 80, 3), 60 + 120*(i % 2), np.uint8) + rng.integers(0, 40, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(a).save(tmp_path/f'{["dark", "light"][i % 2]}_{i}.png')
    dls = pet_dls(tmp_path, size=32, presize=40, bs=8)
    assert isinstance(dls.train, PresizeDL) and dls.train.store is not None
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, .1)
        for i, n in ((0, 48), (1, 12)): assert len(learn.get_preds(ds_idx=i)[0]) == n
        file = dls.valid_ds.items[0]
        label, _, p = learn.predict(file)
        assert p.tolist() == pytest.approx(learn.predict(PILImage.create(file))[2].tolist(), abs=1e-5)
        learn.show_results(max_n=4)
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(4)
        interp.confusion_matrix()
        learn.export('it.pkl')
        again = load_learner(tmp_path/'it.pkl')
        assert str(tmp_path/'dark').encode() not in (tmp_path/'it.pkl').read_bytes(), 'no path of this machine travels along'
        with again.no_bar(): assert again.predict(file)[2].tolist() == pytest.approx(p.tolist(), abs=1e-5)
    many = pet_dls(tmp_path, size=32, presize=40, bs=8, num_workers=2)
    assert sum(len(x) for x, _ in many.train) == 48


def test_unreadable_pictures_are_named_and_left_out(cache, tmp_path, capsys):
    from ch5clf import photos
    from ch5clf.data import pet_dls
    for i in range(20): Image.new('RGB', (50, 40), (10*i, 0, 0)).save(tmp_path/f'{"ab"[i % 2]}_{i}.png')
    (tmp_path/'a_90.jpg').write_bytes(b'\xff\xd8\xff\xe0 not much of a picture')
    for cached in (True, False):
        photos._told.clear()
        dls = pet_dls(tmp_path, size=16, presize=20, bs=4, cached=cached)
        assert len(dls.train_ds) + len(dls.valid_ds) == 20
        assert '1 of 21 pictures is left out' in (said := capsys.readouterr().out) and 'a_90.jpg' in said


# ---- damage, and others at the same store

def hurt(store, file, where=.5, change=lambda b: bytes([b[0] ^ 16])):
    "Change bytes of one picture in the store's file."
    offset, h, w, _ = store.index['pictures'][store.rows[str(file)]]
    with open(store.file, 'r+b') as f:
        f.seek(offset + int(3*h*w*where))
        old = f.read(len(change(b'\0')))
        f.seek(offset + int(3*h*w*where))
        f.write(change(old))


@pytest.mark.parametrize('change', [lambda b: bytes([b[0] ^ 1]), lambda b: bytes(4096)], ids=['one bit', 'a page of zeros'])
def test_a_damaged_picture_is_told_and_mended(cache, tmp_path, capsys, change):
    files = pictures(tmp_path/'few', 4)
    hurt(presize_store(files, 64), files[2], change=change)
    store = presize_store(files, 64)
    for _ in range(2): assert all((store[f] == presized(f, 64)).all() for f in files)
    assert capsys.readouterr().out.count(f'{files[2].name} was damaged') == 1
    assert all((presize_store(files, 64)[f] == presized(f, 64)).all() for f in files) and capsys.readouterr().out == ''


def test_a_damaged_picture_in_a_store_that_may_not_be_written(cache, tmp_path, capsys, monkeypatch):
    from ch5clf import presize
    files = pictures(tmp_path/'few', 3)
    hurt(presize_store(files, 64), files[0])
    store = presize_store(files, 64)
    real = open
    def read_only(f, mode='r', *args, **kwargs):
        if '+' in mode or 'w' in mode: raise OSError(30, 'Read-only file system')
        return real(f, mode, *args, **kwargs)
    monkeypatch.setattr(presize, 'open', read_only, raising=False)
    for _ in range(3): assert (store[files[0]] == presized(files[0], 64)).all()
    assert capsys.readouterr().out.count('was damaged') == 1
    files[0].unlink()
    with pytest.raises(OSError, match='no such file'): presize_store(files[1:], 64) and Store(store.file, store.rows)[files[0]]


def test_a_damaged_index_costs_nothing_but_time(cache, tmp_path):
    files = pictures(tmp_path/'few', 3)
    file = presize_store(files, 64).file
    data = bytearray(file.read_bytes())
    at = data.index(b'"rows"')
    for bit in range(8):
        for place in (at + 3, at + 12, len(data) - 20, len(data) - 27):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            file.write_bytes(broken)
            store = presize_store(files, 64)
            assert store.problems == {} and all((store[f] == presized(f, 64)).all() for f in files)
            del store


def test_a_finished_store_serves_from_a_read_only_disk(cache, tmp_path, monkeypatch):
    "A classroom's shared cache. (For root, who may write everywhere, the disk's answers are played.)"
    from ch5clf import presize
    files = pictures(tmp_path/'few', 3)
    presize_store(files, 64)
    def refuse(*args, **kwargs): raise OSError(30, 'Read-only file system')
    monkeypatch.setattr(os, 'utime', refuse)
    for name in ('mkdir', 'unlink', 'replace'): monkeypatch.setattr(presize.Path, name, refuse)
    store = presize_store(files, 64)
    assert (store[files[1]] == presized(files[1], 64)).all()


def test_a_picture_that_is_swapped_meanwhile_never_stands_under_the_old_name(cache, tmp_path, monkeypatch):
    from ch5clf import presize
    files = pictures(tmp_path/'few', 3)
    real = presize._make
    def swap(target, first, *args):
        Image.new('RGB', (90, 80), 'red').save(files[1])
        real(target, first, *args)
    monkeypatch.setattr(presize, '_make', swap)
    store = presize_store(files, 64)
    assert len(store) == 2 and 'changed meanwhile' in store.problems[str(files[1])]
    monkeypatch.undo()
    monkeypatch.setenv('CH5CLF_CACHE', str(cache))
    assert presize_store(files, 64)[files[1]].mean(axis=(0, 1)).tolist() == [255, 0, 0]


def test_clear_beside_a_builder(cache, tmp_path, monkeypatch):
    from ch5clf import presize
    files, calls = pictures(tmp_path/'few', 6), []
    real, make = presize._decode, presize._make
    monkeypatch.setattr(presize, '_decode', lambda *args: clear() and None or real(*args))  # while it writes
    def then_clear(target, *args):
        make(target, *args)
        calls.append(1)
        if len(calls) == 1: clear()  # between its end and the first look at it
    monkeypatch.setattr(presize, '_make', then_clear)
    store = presize_store(files, 64)
    assert len(calls) == 2 and all((store[f] == presized(f, 64)).all() for f in files)


def test_a_disk_that_fills_up_meanwhile(cache, tmp_path, monkeypatch):
    from ch5clf import presize
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(presize, '_write', full)
    with pytest.raises(OSError, match='make room, set CH5CLF_CACHE'): presize_store(pictures(tmp_path/'few', 2), 64)


# ---- augmentation

ALONE = dict(min_scale=1., max_rotate=0., max_zoom=1., max_warp=0.)


def homographies(seed=0, n=3000, **kwargs):
    import torch
    from ch5clf.presize import draw_homographies
    torch.manual_seed(seed)
    return draw_homographies(n, **(ALONE | kwargs))


def side(H): return np.sqrt(abs(np.linalg.det(H[:, :2, :2])))


def test_each_kind_of_augmentation_does_what_its_limit_says():
    still = homographies()
    assert np.allclose(abs(still), np.eye(3), atol=1e-6) and .45 < (still[:, 0, 0] < 0).mean() < .55  # only flips
    zoomed = side(homographies(max_zoom=1.3))
    assert 1/1.3 - 1e-6 <= zoomed.min() < .79 and zoomed.max() <= 1 + 1e-6 and abs((zoomed < 1 - 1e-6).mean() - .75) < .03
    cropped = side(homographies(min_scale=.5))
    assert .5**.5 - 1e-6 <= cropped.min() < .72 and .99 < cropped.max() <= 1 + 1e-6
    turned = homographies(max_rotate=20.)
    degrees = np.degrees(np.arctan2(abs(turned[:, 0, 1]), abs(turned[:, 0, 0])))
    assert 19 < degrees.max() <= 20.001 and abs((degrees > 1e-3).mean() - .75) < .03 and np.allclose(side(turned), 1, atol=1e-5)
    assert ((abs(homographies(max_warp=.2)[:, 2, :2]) > 1e-4).mean(0) > .7).all()


def test_the_loader_zooms_by_default(cache, tmp_path):
    "What `PresizeDL` shows of a training picture has every kind of augmentation in it: by default the side shrinks through crop and zoom."
    import torch
    from ch5clf.presize import draw_homographies
    torch.manual_seed(1)
    sides = side(draw_homographies(4000, max_warp=0.))
    least = .75**.5/1.1
    assert least - 1e-6 <= sides.min() < least + .02, 'without zoom nothing lies below .75**.5 = .87'

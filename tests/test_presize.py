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
        assert '1 of 21 pictures are left out' in (said := capsys.readouterr().out) and 'a_90.jpg' in said

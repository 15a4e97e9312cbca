"""Paper pets under faults, in other processes, and against their own past."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ch5clf import sample
from ch5clf.sample import BREEDS, draw, paper_pets, paper_pets_test
from PIL import Image

THUMBS = Path(__file__).with_name('paper_pets_thumbs.json')


def thumb(breed, seed):
    return np.asarray(draw([breed], [seed, 1], covers=1, style='colour').resize((6, 5), Image.BOX), int).tolist()


def test_pictures_change_only_with_the_version():
    "A cached set is found again by `DRAWING`; whoever changes the drawing must raise it, then run: python tests/test_sample.py"
    kept = json.loads(THUMBS.read_text())
    assert kept['drawing'] == sample.DRAWING, 'DRAWING was raised: run python tests/test_sample.py'
    for i, b in enumerate(BREEDS):
        off = np.abs(np.array(thumb(b, i)) - kept['thumbs'][b.name]).max()
        assert off <= 6, f'{b.name}: the same seed draws another picture (off by {off}); raise DRAWING'


def script(dest, per_breed=8):
    return [sys.executable, '-c', f'from ch5clf.sample import paper_pets; paper_pets({str(dest)!r}, per_breed={per_breed})']


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize('sig', ['SIGINT', 'SIGKILL'])
def test_an_interruption_leaves_no_half_made_set(tmp_path, sig):
    dest = tmp_path/'set'
    hears = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # also below a shell's background, which ignores it
    p = subprocess.Popen(script(dest, 200), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **hears)
    while not any(tmp_path.glob('.ch5clf-drawing-*/images/*.jpg')): time.sleep(.05)
    os.killpg(p.pid, getattr(signal, sig))
    p.wait()
    assert not dest.exists()
    if sig == 'SIGINT': assert list(tmp_path.iterdir()) == []
    made = paper_pets(dest, per_breed=5)
    assert len(list((made/'images').iterdir())) == 60


def test_two_processes_may_make_the_same_set(tmp_path):
    both = [subprocess.Popen(script(tmp_path/'set'), stderr=subprocess.PIPE) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0], [p.stderr.read() for p in both]
    assert [p.name for p in tmp_path.iterdir()] == ['set']


def test_a_script_without_a_main_guard(tmp_path):
    "As in the README: where processes are spawned, a pool would run the script again."
    file = tmp_path/'train.py'
    file.write_text(f'from ch5clf.sample import paper_pets\nprint(len(list((paper_pets({str(tmp_path/"set")!r}, per_breed=5)/"images").iterdir())))\n', encoding='utf-8')
    assert subprocess.run([sys.executable, file], capture_output=True, text=True).stdout.strip() == '60'


def test_test_split_is_other_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'cache'))
    made = paper_pets(tmp_path/'set', per_breed=5, wrong_labels=.5)
    test = paper_pets_test(made, per_breed=5)
    trained = {p.read_bytes() for p in (made/'images').iterdir()}
    fresh = [p.read_bytes() for p in (test/'images').iterdir()]
    assert len(fresh) == 60 and not trained & set(fresh)
    rows = (test/'labels.csv').read_text(encoding='utf-8').splitlines()[1:]
    assert all(r.endswith(',test') and r.split(',')[1] == r.split(',')[2] for r in rows)
    assert paper_pets_test(made, per_breed=5) == test
    with pytest.raises(FileNotFoundError, match='make one with paper_pets'): paper_pets_test(tmp_path)


def test_a_failing_child_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, '_rows', lambda about: [dict(breed='nobody', number=0, label='x', split='train', name='x_1.jpg')])
    with pytest.raises(RuntimeError, match='drawing stopped'): paper_pets(tmp_path/'set', per_breed=5)
    assert list(tmp_path.iterdir()) == []


if __name__ == '__main__':
    THUMBS.write_text(json.dumps(dict(drawing=sample.DRAWING, thumbs={b.name: thumb(b, i) for i, b in enumerate(BREEDS)})) + '\n')

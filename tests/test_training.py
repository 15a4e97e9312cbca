"""A training that is stopped: kill -9 at every kind of moment, Ctrl-C, a full disk, two processes.

One training without interruption is the reference. Whatever happens to another one, `--resume` ends with the same file.
"""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, '-m', 'ch5clf.cli', 'train']
SMALL = ['--size', '32', '--bs', '16', '--epochs', '2', '--keep', 'last'] # three batches an epoch
linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='wants fork and /proc')
needs_gloo = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason='this torch has no gloo')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in dict(PYTHONPATH=str(ROOT), PYTHONUTF8='1', OMP_NUM_THREADS='1').items(): monkeypatch.setenv(name, value)
    for name in ('IN_TEST', 'RANK', 'WORLD_SIZE'): monkeypatch.delenv(name, raising=False)


def train(*args, cwd, **kwargs):
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, encoding='utf-8', **kwargs)


@pytest.fixture(scope='module')
def pets(tmp_path_factory):
    from ch5clf.sample import paper_pets
    return paper_pets(tmp_path_factory.mktemp('pets')/'pets', per_breed=5)


@pytest.fixture(scope='module')
def reference(pets, tmp_path_factory):
    "The bytes of the model of a training that nothing interrupts."
    folder = tmp_path_factory.mktemp('reference')
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '1', 'OMP_NUM_THREADS': '1'}
    r = train(pets, *SMALL, cwd=folder, env=env)
    assert r.returncode == 0, r.stderr
    assert sorted(f.name for f in folder.iterdir()) == ['pets.html', 'pets.safetensors']
    return (folder/'pets.safetensors').read_bytes()


KILLED = '''
import os, signal, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import ch5clf.training as training
from ch5clf.report import write_report

pets, folder, reference = sys.argv[1:]
def die(): os.kill(os.getpid(), signal.SIGKILL)

def kill_at(name, when, nth, of=training):
    "Replace a function by one that dies at its nth call: before it, after it, or in the middle of what it writes."
    real, calls = getattr(of, name), [0]
    def deadly(*args, **kwargs):
        calls[0] += 1
        if calls[0] == nth and when == 'before': die()
        if calls[0] == nth and when == 'within': # a half-written temporary file
            path = Path(args[0])
            path.with_name(f'.{path.name}.1-1.tmp').write_bytes(args[1][:len(args[1])//2])
            die()
        result = real(*args, **kwargs)
        if calls[0] == nth and when == 'after': die()
        return result
    setattr(of, name, deadly)

def report(*args): return write_report(*args)
moments = [(name, when, nth) for name in ('write_atomic',) for when in ('before', 'within', 'after') for nth in (1, 2, 3, 4)]
moments += [('_throw_again', 'after', 1), ('_throw_again', 'after', 2), ('_held_back', 'before', 2), ('save_model', 'before', 1),
            ('save_model', 'after', 1), ('write_report', 'after', 1), ('linear_probe', 'before', 1)]

def child(f):
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)[1]
    try: f()
    except BaseException: traceback.print_exc(); os._exit(1)
    os._exit(0)

def go(out, moment, resume):
    if moment:
        if moment[0] == 'write_report': kill_at(*moment, of=sys.modules['__main__'])
        else: kill_at(*moment)
    training.train_folder(pets, out, size=32, bs=16, epochs=2, keep='last', resume=resume, report=report, quiet=True)

for i, moment in enumerate(moments):
    out = Path(folder)/f'{i}'/'pets.safetensors'
    out.parent.mkdir()
    status = child(lambda: go(out, moment, False))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
    status = child(lambda: go(out, None, True))
    assert status == 0, (moment, status)
    left = sorted(f.name for f in out.parent.iterdir() if not f.name.endswith('.tmp'))
    same = out.read_bytes() == Path(reference).read_bytes()
    print(*moment, left == ['pets.html', 'pets.safetensors'] and same, flush=True)
'''


@pytest.mark.slow
@linux
def test_kill_9_at_many_moments(pets, reference, tmp_path):
    "Before, within and after each thing that is written, in the middle of an epoch, around the model and the report."
    (tmp_path/'reference').write_bytes(reference)
    (tmp_path/'kill.py').write_text(KILLED)
    (tmp_path/'runs').mkdir()
    r = subprocess.run([sys.executable, tmp_path/'kill.py', pets, tmp_path/'runs', tmp_path/'reference'], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr[-3000:]
    assert r.stdout.count('True') == 19 and 'False' not in r.stdout, r.stdout


def lines_until(job, word):
    "Read a command's complaints until one of them holds the word."
    seen = []
    for line in job.stderr:
        seen.append(line)
        if word in line: return seen
    raise AssertionError(''.join(seen))


@linux
@pytest.mark.parametrize('sent, code', [
    (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow), pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow)])
def test_stopped_from_outside(pets, reference, tmp_path, sent, code):
    job = subprocess.Popen([*COMMAND, pets, *SMALL], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    lines_until(job, 'linear probe')
    job.send_signal(sent)
    rest = job.stderr.read()
    assert job.wait() == code and 'Traceback' not in rest
    if code == 130: assert rest.endswith(f'Go on with: ch5clf train {pets} --resume\n'), rest
    r = train(pets, cwd=tmp_path)
    assert r.returncode == 2 and '--resume' in r.stderr and r.stderr.count('\n') == 1
    r = train(pets, '--resume', '--epochs', 3, cwd=tmp_path)
    assert r.returncode == 2 and 'has epochs 2' in r.stderr
    r = train(pets, '--resume', cwd=tmp_path)
    assert r.returncode == 0 and 'linear probe' not in r.stderr, r.stderr
    assert (tmp_path/'pets.safetensors').read_bytes() == reference


def test_nothing_is_overwritten(pets, tmp_path):
    from ch5clf.training import train_folder
    for name in ('pets.safetensors', 'pets.html'):
        (tmp_path/name).write_text('mine')
        with pytest.raises(ValueError, match='stays as it is'): train_folder(pets, tmp_path/'pets.safetensors', quiet=True, report=print)
        assert (tmp_path/name).read_text() == 'mine' and len([*tmp_path.iterdir()]) == 1
        (tmp_path/name).unlink()


def test_what_was_put_there_meanwhile_stays(pets, tmp_path, monkeypatch):
    "Somebody's file under the name of the model appears while the training runs."
    from ch5clf import training
    out = tmp_path/'pets.safetensors'
    real = training.unfrozen_fit
    def fit(*args, **kwargs): out.write_text('mine'); return real(*args, **kwargs)
    monkeypatch.setattr(training, 'unfrozen_fit', fit)
    with pytest.raises(ValueError, match='stays as it is'): training.train_folder(pets, out, size=32, bs=16, epochs=1, quiet=True)
    assert out.read_text() == 'mine' and (tmp_path/'pets.checkpoint').exists()
    trained = training.train_folder(pets, out, resume=True, force=True, quiet=True)
    assert len(trained.history) == 2 and not (tmp_path/'pets.checkpoint').exists() and load_file(out)


def test_other_pictures_are_not_gone_on_with(pets, tmp_path):
    from ch5clf import training
    import shutil
    mine = tmp_path/'mine'
    shutil.copytree(pets, mine)
    class Stop(Exception): pass
    def stop(trained, file): raise Stop('stop')
    with pytest.raises(Stop): training.train_folder(mine, tmp_path/'a.safetensors', size=32, bs=16, epochs=0, report=stop, quiet=True)
    first, second = sorted((mine/'images').iterdir())[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match='not those'): training.train_folder(mine, tmp_path/'a.safetensors', resume=True, quiet=True)
    damaged = (tmp_path/'a.checkpoint')
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(ValueError, match='damaged'): training.train_folder(mine, tmp_path/'a.safetensors', resume=True, quiet=True)


@linux
def test_a_full_disk(pets, tmp_path):
    "A limit on the size of files: one line with the file, and the last checkpoint stays."
    import resource
    def limit(): signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    train(pets, '--quick', '--size', 32, '-o', 'warm.safetensors', cwd=tmp_path) # the store is larger than the limit
    r = train(pets, '--quick', '--size', 32, cwd=tmp_path, preexec_fn=limit)
    assert r.returncode == 1 and r.stderr.splitlines()[-1].startswith('ch5clf: ') and 'pets.checkpoint: File too large' in r.stderr
    assert 'Traceback' not in r.stderr and not [*tmp_path.glob('.*.tmp')] and (tmp_path/'pets.checkpoint').exists()
    assert train(pets, '--resume', cwd=tmp_path).returncode == 0


@linux
def test_two_at_once(pets, tmp_path):
    "The second training of one name is refused while the first one runs."
    job = subprocess.Popen([*COMMAND, pets, *SMALL], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    lines_until(job, 'held back; ')
    os.kill(job.pid, signal.SIGSTOP)
    try: r = train(pets, '--resume', cwd=tmp_path)
    finally: os.kill(job.pid, signal.SIGCONT)
    assert r.returncode == 2 and 'another process' in r.stderr
    job.stderr.read()
    assert job.wait() == 0


# ------------------------------------------------------------------ two processes

LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', '-m', 'ch5clf.cli', 'train']


def largest(a, b):
    a, b = load_file(a), load_file(b)
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def ranks(pid):
    "The processes that a launcher started."
    return [int(c) for t in Path(f'/proc/{pid}/task').iterdir() for c in (t/'children').read_text().split()]


@pytest.mark.slow
@linux
@needs_gloo
def test_two_processes_give_the_weights_of_one(pets, tmp_path):
    "A batch of 15 among two: 8 and 7. One writes, and a killed one ends the run with a word."
    settings = ['--size', '32', '--bs', '15', '--epochs', '2', '--keep', 'last']
    r = train(pets, *settings, '-o', 'one.safetensors', cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    r = subprocess.run([*LAUNCH, pets, *settings, '-o', 'two.safetensors'], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.count('two.safetensors: ') == 1 and 'Warning' not in r.stderr, r.stdout + r.stderr
    assert largest(tmp_path/'one.safetensors', tmp_path/'two.safetensors') < 1e-4
    for victim in (0, 1):
        out = f'killed{victim}.safetensors'
        job = subprocess.Popen([*LAUNCH, pets, *settings, '-o', out], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        lines_until(job, 'linear probe')
        time.sleep(.2)
        os.kill(sorted(ranks(job.pid))[victim], signal.SIGKILL)
        rest = job.stderr.read()
        assert job.wait() != 0 and re.search(r'ch5clf: (another process|stopped).*Go on with: torchrun .*--resume', rest), rest
        r = subprocess.run([*LAUNCH, pets, '-o', out, '--resume'], cwd=tmp_path, capture_output=True, text=True)
        assert r.returncode == 0 and 'linear probe' not in r.stderr, r.stderr
        assert (tmp_path/out).read_bytes() == (tmp_path/'two.safetensors').read_bytes()

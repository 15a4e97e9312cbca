"The one store under fire: several processes, kills, full disks, read-only folders, file systems without locks, strange files."
import errno, json, os, random, subprocess, sys, tempfile, threading, time
from pathlib import Path

import pytest

from ch5clf import places
from ch5clf.places import VERSION, Progress, Section, sweep, write_atomic

ROOT = Path(__file__).resolve().parents[1]
posix = pytest.mark.skipif(os.name != 'posix', reason='POSIX only')


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "A folder and a store of its own for each test."
    monkeypatch.setenv('CH5CLF_PROGRESS', str(tmp_path/'progress'))
    monkeypatch.setattr(places, 'progress', Progress())
    return tmp_path/'progress'


def count(data): data['bets']['n'] = {'n': data['bets'].get('n', {'n': 0})['n'] + 1}

def on_disk(folder): return json.loads((folder/'progress.json').read_text(encoding='utf-8'))

def python(code, *args, **env):
    return subprocess.Popen([sys.executable, '-c', code, *args], env={**os.environ, 'PYTHONPATH': str(ROOT), **env},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

WRITER = '''
import sys
from ch5clf.places import progress
def count(data): data['bets']['n'] = {'n': data['bets'].get('n', {'n': 0})['n'] + 1}
for _ in range(int(sys.argv[1])): progress.change(count)
print(progress.take_notice(), end='')
'''


# ---------------------------------------------------------------- several at once, and sudden ends
def test_four_processes_lose_nothing(folder):
    jobs = [python(WRITER, '200') for _ in range(4)]
    said = [j.communicate(timeout=240) for j in jobs]
    assert [j.returncode for j in jobs] == [0]*4, said
    assert on_disk(folder)['bets']['n'] == {'n': 800} and not any(out for out, _ in said)
    assert sorted(p.name for p in folder.iterdir()) == ['progress.json', 'progress.lock']


def test_threads_lose_nothing(folder):
    store = Progress()
    threads = [threading.Thread(target=lambda: [store.change(count) for _ in range(25)]) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert on_disk(folder)['bets']['n'] == {'n': 100}


def test_killed_while_writing_leaves_a_whole_file(folder):
    rng, seen = random.Random(0), 0
    for _ in range(6):
        job = python(WRITER, '1000000')
        end = time.time() + 60
        while not (folder/'progress.json').exists() and time.time() < end: time.sleep(.02)
        time.sleep(.3*rng.random())
        job.kill(); job.communicate()
        now = on_disk(folder)['bets']['n']['n']
        assert now >= seen
        seen = now
    places.progress.change(count) # and no lock bars the way
    assert on_disk(folder)['bets']['n'] == {'n': seen + 1} and places.progress.take_notice() == ''


def test_what_killed_writers_left_goes_after_a_day(folder):
    folder.mkdir()
    old, new = folder/'.progress.json.1-2.tmp', folder/'.progress.json.3-4.tmp'
    for p in (old, new): p.write_text('x')
    os.utime(old, (time.time() - 2*24*3600,)*2)
    places.progress.change(count)
    assert not old.exists() and new.exists()
    os.utime(new, (time.time() + 10**7,)*2) # a clock that was wrong
    assert sweep(folder, '.progress.json.*') == 1


# ---------------------------------------------------------------- a disk that refuses
FULL = '''
import json, os, resource, sys
from pathlib import Path
from ch5clf.places import progress, progress_folder
file = progress_folder()/'progress.json'
progress.change(lambda data: data['bets'].update(a={'guess': 1}))
before = file.read_bytes()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
progress.change(lambda data: data['bets'].update(b={'guess': 2}))
assert file.read_bytes() == before and [p.name for p in sorted(file.parent.iterdir())] == ['progress.json', 'progress.lock']
assert set(progress.read()['bets']) == {'a', 'b'}
notice = progress.take_notice('ko')
assert '메모리에만' in notice and progress.take_notice() == '', notice
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
progress.change(lambda data: data['bets'].update(c={'guess': 3}))
assert set(json.loads(file.read_text())['bets']) == {'a', 'b', 'c'}
'''

@posix
def test_a_full_disk(folder):
    job = python(FULL)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err


@posix
def test_a_read_only_folder(monkeypatch):
    "In a child that is nobody, where we are the superuser, who may write anywhere."
    import filelock, platformdirs # here, so that the child need not find them
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'progress'
        folder.mkdir()
        monkeypatch.setenv('CH5CLF_PROGRESS', str(folder))
        old = json.dumps(dict(version=1, questions={}, disagreements=[], bets={'a': {'guess': 1}}))
        (folder/'progress.json').write_text(old)
        (folder/'progress.lock').touch()
        for p in (Path(tmp), folder): p.chmod(0o555)
        pid = os.fork()
        if pid == 0:
            said = 1
            try:
                if os.geteuid() == 0: os.setuid(65534)
                for _ in range(2): places.progress.change(count)
                told, kept = 'memory' in places.progress.take_notice(), places.progress.read()['bets']
                said = 0 if told and kept == {'a': {'guess': 1}, 'n': {'n': 2}} else 2
            finally: os._exit(said)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for p in (Path(tmp), folder): p.chmod(0o755)
        assert code == 0 and (folder/'progress.json').read_text() == old


@pytest.mark.parametrize('place', ['file in the way', 'under a file'])
def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, place):
    (tmp_path/'f').write_text('x')
    monkeypatch.setenv('CH5CLF_PROGRESS', str(tmp_path/'f' if place == 'file in the way' else tmp_path/'f'/'deeper'))
    places.progress.change(count)
    assert 'memory' in places.progress.take_notice() and places.progress.read()['bets'] == {'n': {'n': 1}}


@posix
@pytest.mark.parametrize('code', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_no_locks_on_this_file_system(folder, monkeypatch, code):
    "To memory at once, and to the file as soon as there are locks again."
    import fcntl
    def refuse(*args): raise OSError(code, os.strerror(code))
    with monkeypatch.context() as m:
        m.setattr(fcntl, 'flock', refuse)
        start = time.monotonic()
        for _ in range(3): places.progress.change(count)
        assert time.monotonic() - start < 1
        assert os.strerror(code) in places.progress.take_notice() and places.progress.read()['bets'] == {'n': {'n': 3}}
        assert not (folder/'progress.json').exists()
    places.progress.change(count)
    assert on_disk(folder)['bets']['n'] == {'n': 4}


HOLDER = '''
import sys, time
from ch5clf.places import progress_folder
from filelock import FileLock
progress_folder().mkdir(parents=True, exist_ok=True)
with FileLock(progress_folder()/'progress.lock'):
    print('held', flush=True)
    sys.stdin.readline()
'''

def test_a_lock_that_is_never_given_back_costs_ten_seconds_once(folder):
    job = subprocess.Popen([sys.executable, '-c', HOLDER], env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert job.stdout.readline() == 'held\n'
        start = time.monotonic()
        places.progress.change(count)
        first = time.monotonic() - start
        for _ in range(5): places.progress.change(count)
        assert first < 15 and time.monotonic() - start - first < 1
        assert 'another program' in places.progress.take_notice() and places.progress.read()['bets'] == {'n': {'n': 6}}
    finally: job.communicate('\n', timeout=20)


def test_write_atomic_names_the_file_and_leaves_nothing(tmp_path):
    (tmp_path/'taken').mkdir()
    with pytest.raises(OSError) as e: write_atomic(tmp_path/'taken', 'x') # a folder stands there
    assert e.value.filename == str(tmp_path/'taken') and [p.name for p in tmp_path.iterdir()] == ['taken']


# ---------------------------------------------------------------- strange files
DAMAGED = [b'', b'{"version": 1, "que', b'\xff\xfe\x00nonsense', b'[]', b'null', b'7', b'{"version": true}', b'{"version": 1, "bets": []}',
           b'{"version": 1, "questions": {"q01": {"tries": "many"}}, "disagreements": []}', b'{"version": 1, "bets": {"a": 3}}',
           b'[' * 100_000, b'{"version": 1, "bets": ' + b'{"a": ' * 50_000, b'9' * 5_000]

@pytest.mark.parametrize('content', DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_file_is_set_aside_whole(folder, content):
    folder.mkdir()
    (folder/'progress.json').write_bytes(content)
    places.progress.change(count)
    aside, = folder.glob('progress-damaged-*.json')
    notice = places.progress.take_notice('en')
    assert aside.read_bytes() == content and aside.name in notice and places.progress.take_notice() == ''
    assert on_disk(folder)['bets'] == {'n': {'n': 1}}


def test_a_file_of_the_future_is_left_alone(folder):
    folder.mkdir()
    later = json.dumps(dict(version=VERSION + 1, bets='of another form'))
    (folder/'progress.json').write_text(later)
    places.progress.change(count)
    assert '새로운 버전' in places.progress.take_notice('ko') and places.progress.read()['bets'] == {'n': {'n': 1}}
    assert (folder/'progress.json').read_text() == later


def test_a_byte_order_mark_is_no_damage(folder):
    folder.mkdir()
    (folder/'progress.json').write_text(json.dumps(dict(version=1, questions={}, disagreements=[])), encoding='utf-8-sig')
    places.progress.change(count)
    assert on_disk(folder)['bets'] == {'n': {'n': 1}} and not list(folder.glob('*damaged*'))


def answer(**news): return {**dict(tries=1, hints=0, solution=False, state='right', last=1., best=1., own=0., by='judged', first='', when=''), **news}

def test_words_of_another_version_do_not_stop_the_report(folder):
    from ch5clf.questions import progress
    folder.mkdir()
    odd = {'r01': answer(state='splendid', best=0., last=0.), 'r02': answer(by='the neighbours', when='yesterday'), 'zz9': answer()}
    (folder/'progress.json').write_text(json.dumps(dict(version=1, questions=odd, disagreements=['odd', 3], more=1)))
    for lang in ('en', 'ko'):
        report = progress(lang)
        assert 'r02' in repr(report) + report._repr_html_()
    places.progress.change(count)
    assert on_disk(folder)['more'] == 1 and on_disk(folder)['questions']['r01']['state'] == 'splendid'


@pytest.mark.parametrize('damaged', [False, True])
def test_the_first_editions_files_are_read_on(folder, damaged):
    folder.mkdir()
    for name in ('bets', 'findings'):
        (folder/f'{name}.json').write_text(json.dumps(dict(version=1, entries={f'old {name}': dict(guess=.2), 'odd': 3})))
    (folder/'progress.json').write_text('{' if damaged else json.dumps(dict(version=1, questions={'q01': answer()}, disagreements=[])))
    assert Section('bets').read() == {'old bets': dict(guess=.2)} and Section('findings.json').read() == {'old findings': dict(guess=.2)}
    Section('bets').write('new', dict(guess=.4))
    kept = on_disk(folder)
    assert set(kept['bets']) == {'old bets', 'new'} and set(kept['findings']) == {'old findings'} and ('q01' in kept['questions']) != damaged
    assert (folder/'bets.json').exists()


# ---------------------------------------------------------------- where, and in which words
def test_the_home_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv('CH5CLF_PROGRESS', '~nosuchuser/x')
    places.progress.change(count)
    assert 'memory' in places.progress.take_notice() and places.progress.read()['bets'] == {'n': {'n': 1}}
    assert not Path('~nosuchuser').exists()


@posix
def test_no_home_at_all(tmp_path, monkeypatch):
    import pwd
    def nobody(uid): raise KeyError(uid)
    for name in ('CH5CLF_PROGRESS', 'HOME', 'XDG_DATA_HOME', 'CI', 'IN_TEST', 'PYTEST_CURRENT_TEST'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    monkeypatch.chdir(tmp_path)
    places.progress.change(count)
    assert 'CH5CLF_PROGRESS' in places.progress.take_notice() and not list(tmp_path.iterdir()) # no folder called ~
    assert places.progress.read()['bets'] == {'n': {'n': 1}}


def test_inside_a_test_nothing_is_named(monkeypatch):
    monkeypatch.delenv('CH5CLF_PROGRESS')
    assert places.progress_folder() is None
    monkeypatch.delenv('PYTEST_CURRENT_TEST')
    monkeypatch.setenv('IN_TEST', '1')
    assert places.progress_folder() is None


def test_another_folder_is_another_reader(folder, tmp_path, monkeypatch):
    places.progress.change(count)
    monkeypatch.setenv('CH5CLF_PROGRESS', str(tmp_path/'다른 폴더'))
    assert places.progress.read()['bets'] == {} and not (tmp_path/'다른 폴더').exists()


def test_reading_makes_no_file(folder):
    assert places.progress.read()['questions'] == {} and not folder.exists()


def test_a_step_that_raises_is_not_tried_again(folder):
    places.progress.change(count)
    def bad(data): raise KeyError('ours')
    with pytest.raises(KeyError): places.progress.change(bad)
    with pytest.raises(TypeError): Section('bets').write('object', dict(x=object()))
    places.progress.change(count)
    assert on_disk(folder)['bets'] == {'n': {'n': 2}}

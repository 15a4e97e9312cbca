"A learner's function under attack: whatever it does, there is a reply in bounded time, and the next call works."
import ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from ch5clf import guard
from ch5clf.guard import Ended, _Child, _here, _packed, run_guarded

linux = pytest.mark.skipif(sys.platform != 'linux', reason='processes are handled so on Linux')
unix = pytest.mark.skipif(os.name == 'nt', reason='Windows has no such thing')


@pytest.fixture(scope='module', params=[True, False], ids=['forks', 'one process'])
def child(request):
    "The way of Linux, and the way of macOS and Windows."
    if request.param and not guard._forks: pytest.skip('no forks here')
    child = _Child(request.param)
    yield child
    child.job.kill()


@pytest.fixture
def call(child):
    def call(fn, *args, seconds=.5, wall=1.5):
        start = time.monotonic()
        ran = child.call(*_packed(fn, args), seconds, wall)
        assert time.monotonic() - start < 30, 'a reply in bounded time'
        assert child.call(*_packed(len, ('abc',)), 5, 30).value == 3, 'the next call works'
        return ran
    return call


def c_loop():
    import itertools
    return sum(itertools.count())
def swallows():
    while True:
        try: pass
        finally: continue
def swallows_all():
    while True:
        try:
            while True: pass
        except BaseException: pass
def deaf():
    import signal
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
    while True: pass
def asleep(): time.sleep(1000)
def waits(): threading.Event().wait()
def floods():
    while True: print('x'*10**6); os.write(1, b'x'*10**6); os.write(2, b'x'*10**6)


@pytest.mark.parametrize('fn', [c_loop, swallows, swallows_all, deaf, asleep, waits, floods], ids=lambda f: f.__name__)
def test_what_never_ends(call, fn):
    if fn is deaf and os.name == 'nt': pytest.skip('Windows has no such thing')
    assert call(fn).late


@linux
def test_a_late_function_is_ended_at_once(tmp_path):
    file = tmp_path/'pid'
    def loops():
        file.write_text(str(os.getpid()))
        c_loop()
    assert run_guarded(loops, seconds=.3).late
    with pytest.raises(ProcessLookupError): os.kill(int(file.read_text()), 0)


def exits(): sys.exit(3)
def exits_hard(): os._exit(3)
def exits_harder(): ctypes.CDLL(None)._exit(3)
def becomes_another(): os.execv(sys.executable, [sys.executable, '-c', ''])
def asks(): input('?')


@pytest.mark.parametrize('fn', [exits, exits_hard, exits_harder, becomes_another, asks], ids=lambda f: f.__name__)
@unix
def test_what_leaves(call, fn):
    assert isinstance(call(fn).error, SystemExit)


def kills_itself(): os.kill(os.getpid(), signal.SIGKILL)
def crashes(): ctypes.string_at(0)
def aborts(): ctypes.CDLL(None).abort()
def overflows():
    class Deep:
        def __repr__(self): return repr(self)
    sys.setrecursionlimit(10**9)
    return repr(Deep())


@linux
@pytest.mark.parametrize('fn', [kills_itself, crashes, aborts], ids=lambda f: f.__name__)
def test_what_crashes(fn):
    ran = run_guarded(fn)
    assert isinstance(ran.error, Ended) and 'stopped by signal' in str(ran.error)
    assert run_guarded(len, ('abc',)).value == 3


@linux
def test_memory_is_limited():
    def eats():
        kept = []
        while True: kept.append(bytearray(10**8))
    start = time.monotonic()
    assert isinstance(run_guarded(eats, seconds=5).error, MemoryError) and time.monotonic() - start < 20
    assert isinstance(run_guarded(lambda: 'x'*10**12).error, MemoryError)
    ran = run_guarded(overflows, seconds=10)
    assert ran.error is not None or ran.late
    assert run_guarded(len, ('abc',)).value == 3


def test_much_does_not_come_back(call):
    assert call(lambda: [[float(i) for i in range(19_000)]]*400, seconds=60, wall=180).value.name == 'very large value'
    assert call(lambda: 'x'*10**7).value.name == 'very long text'


@unix
@pytest.mark.parametrize('seed', range(12))
def test_noise_on_the_line(call, seed):
    "A function that finds the pipe and writes into it, or closes it."
    def noise():
        import random
        r = random.Random(seed)
        data = r.choice([b'\xff'*8, b'\0'*8, b'\0'*7 + b'\x03abc', r.randbytes(100), b'\0'*7 + b'\x20' + r.randbytes(32), b''])
        for fd in range(3, 30):
            try: os.write(fd, data) if data else os.close(fd)
            except OSError: pass
    ran = call(noise)
    assert ran.value is None


@unix
def test_pickles_run_nothing_here(call, tmp_path):
    class Bad:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'bad'),)
    def smuggle():
        import pickle
        data = pickle.dumps(('done', Bad(), None, '', None, []))
        for fd in range(3, 30):
            try: os.write(fd, len(data).to_bytes(8, 'big') + data)
            except OSError: pass
        time.sleep(1000)
    call(smuggle)
    assert not (tmp_path/'bad').exists()


class Sly(str):
    def __len__(self): raise SystemExit
    __str__ = __repr__ = __eq__ = __iter__ = __len__
    __hash__ = str.__hash__
class SlyTensor:
    "Looks like a tensor and leaves Python wherever it is touched."
    def __getattribute__(self, name): raise SystemExit
    __class__ = property(lambda self: exits())


@pytest.mark.parametrize('make', [lambda: Sly('a'), SlyTensor, lambda: [Sly('a')], lambda: {'a': SlyTensor()}],
                         ids=['text', 'object', 'list', 'dict'])
def test_methods_of_a_result(make):
    "They run in the child, or under the guard; a check gets its reply."
    from ch5clf.kinds import Code, FunctionAnswer
    code = Code('f', lambda: [(1,), (2,)], lambda x: x)
    for fn in (lambda x: make(), lambda x, lock=threading.Lock(): make()): # the second cannot travel
        assert code.judge(FunctionAnswer(fn), 'en').state in ('wrong', 'error in your code')


def test_methods_of_an_exception(call):
    class Rude(Exception):
        def __str__(self): raise SystemExit
        __repr__ = __getattr__ = __str__
    def rude(): raise Rude
    for ran in (call(rude), _here(rude, (), 1, 3)): assert guard.described(ran.error).startswith('Rude')


@linux
def test_one_function_does_not_spoil_the_next():
    def spoil():
        import builtins, math
        builtins.sum = math.exp = lambda *a: 42
        os.environ['PATH'] = ''
        sys.setrecursionlimit(60)
        threading.Thread(target=asleep).start()
        return sum([1])
    def sound():
        import math
        return [sum([1, 2]), math.exp(0), sys.getrecursionlimit() > 60]
    assert run_guarded(spoil).value == 42
    assert run_guarded(sound).value == [3, 1, True]


def test_calls_of_one_function_share_their_state():
    "As they would in a notebook: a cache is filled once. The notebook's own is not touched."
    cache = {}
    def cached(x): return cache.setdefault('first', x)
    assert [run_guarded(cached, (i,)).value for i in (3, 4)] == [3, 3] and cache == {}


def test_what_cannot_travel_runs_here():
    lock, before = threading.Lock(), os.getpid()
    assert run_guarded(lambda: (lock.locked(), os.getpid())).value == [False, before]
    assert run_guarded(os.getpid).value != before
    class Slow:
        def __reduce__(self):
            while True: pass
    slow = Slow()
    assert run_guarded(lambda: slow, seconds=.3).late
    big = bytearray(guard._most + 1)
    assert run_guarded(lambda: len(big)).value == len(big)


def test_without_a_child(monkeypatch):
    "Where no process may be started, functions run here."
    monkeypatch.setattr(guard, '_child', _Child())
    monkeypatch.setattr(sys, 'executable', '/no/such/python')
    assert run_guarded(os.getpid).value == os.getpid()


@unix
def test_a_lost_child_is_replaced():
    assert run_guarded(len, ('ab',)).value == 2
    guard._child.job.kill()
    time.sleep(.2)
    assert run_guarded(len, ('abc',)).value == 3


@unix
def test_ctrl_c(ctrl_c):
    "The stop button ends the wait, and the function."
    threading.Timer(.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    ran = run_guarded(asleep, seconds=20)
    assert isinstance(ran.error, KeyboardInterrupt) and time.monotonic() - start < 10
    assert run_guarded(len, ('abc',)).value == 3


@linux
def test_nothing_stays_behind(tmp_path):
    "The child ends with the process that started it, however that ends."
    code = 'import os\nfrom ch5clf.guard import _child, run_guarded\nrun_guarded(lambda: 1)\nprint(_child.job.pid, flush=True)\nos.kill(os.getpid(), 9)'
    env = {**os.environ, 'PYTHONPATH': str(Path(guard.__file__).parents[1])}
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=60).stdout
    for _ in range(100):
        try: os.kill(int(out), 0)
        except ProcessLookupError: return
        state = Path(f'/proc/{int(out)}/stat')
        if state.exists() and ') Z ' in state.read_text(): return
        time.sleep(.1)
    pytest.fail('the child lives on')


def test_a_script_without_a_main_guard(tmp_path):
    script = tmp_path/'script.py'
    script.write_text('print("once")\nfrom ch5clf.guard import run_guarded\n'
                      'def f(x): return x + n\nn = 1\nprint(run_guarded(f, (2,)).value)\n', encoding='utf-8')
    env = {**os.environ, 'PYTHONPATH': str(Path(guard.__file__).parents[1])}
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, timeout=60)
    assert out.stdout.split() == ['once', '3'], out.stderr


def test_code_of_the_readers_own_module_travels(tmp_path, monkeypatch):
    "As it stands here: a module that has changed on disk, or is gone, does not matter."
    (tmp_path/'my_helpers_of_guard.py').write_text('n = 1\ndef f(x): return x + n\n', encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    import my_helpers_of_guard as mine
    (tmp_path/'my_helpers_of_guard.py').unlink()
    mine.n = 10
    assert run_guarded(mine.f, (2,)).value == 12


@pytest.mark.parametrize('here', [False, True], ids=['child', 'here'])
def test_a_check_is_quick(here):
    "After the first one, a code question is answered in well under a second, in processor time of this process nearly none."
    from ch5clf.kinds import Code, FunctionAnswer
    code = Code('f', lambda: [(i,) for i in range(5)], lambda x: x)
    extra = threading.Lock() if here else 0
    times = []
    for i in range(6):
        fn = (lambda x, i=i, extra=extra: x)
        start = time.perf_counter()
        assert code.judge(FunctionAnswer(fn), 'en').state == 'right'
        times.append(time.perf_counter() - start)
    assert sorted(times[1:])[2] < .3, times


plain_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
                            | st.complex_numbers(allow_nan=False), lambda s: st.lists(s, max_size=4), max_leaves=12)


@settings(max_examples=60, deadline=None)
@given(plain_values)
def test_plain_values_travel_unchanged(value):
    from ch5clf.answers import plain
    def same_type(x): return x
    ran = run_guarded(same_type, (value,))
    assert ran.error is None and ran.value == plain(value) and ran.given == [plain(value)]


def test_an_answer_whose_methods_leave_python():
    "`check` never raises, whatever the object that it is given does when it is looked at."
    from fractions import Fraction
    from ch5clf.questions import questions
    class Leaves(Fraction):
        __module__ = 'fractions'
        def __float__(self): raise SystemExit
    for answer in (Leaves(1, 2), [Leaves(1, 2)], {Leaves(1, 2): Sly('a')}, SlyTensor(), Sly('a')):
        for id in ('q10', 'q15', 't01', 'q22'): assert questions[id].check(answer).state != 'right'

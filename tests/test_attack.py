"""Generated attacks on eight areas: damaged and hostile files, arguments, answers and models.

A few tries each in every run; `CH5CLF_TRIES=50 pytest tests/test_attack.py` makes fifty times as many, of other seeds. What must
hold is the same everywhere: an answer or a clear refusal, in bounded time, and nothing that was there before is lost."""
import contextlib, copy, io, json, math, os, random, resource, signal, struct, sys, time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

TIMES = int(os.environ.get('CH5CLF_TRIES', '1'))
pytestmark = [pytest.mark.skipif(os.name == 'nt', reason='limits by signals'), pytest.mark.usefixtures('ctrl_c')]


def seeds(n, times=TIMES): return range(n) if times == 1 else range(1000, 1000 + n*times)


class TooLong(BaseException): "A try took more than its time of the processor."


@contextlib.contextmanager
def within(seconds):
    def late(*_): raise TooLong(f'over {seconds} s')
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(autouse=True)
def bounded(monkeypatch, tmp_path):
    "12 GB of addresses at most; places of its own."
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if sys.platform == 'linux': resource.setrlimit(resource.RLIMIT_DATA, (12*2**30, before[1]))
    for name in ('CACHE', 'PROGRESS'): monkeypatch.setenv(f'CH5CLF_{name}', str(tmp_path/name.lower()))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def damaged(rng, data):
    "Bytes after an accident or with intent."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(max(1, len(data)))
        if rng.random() < .4: at = rng.randrange(max(1, min(200, len(data)))) # most lies in the head
        match rng.randrange(7):
            case 0: data[at:at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << rng.randrange(8)])
            case 1: del data[at:]
            case 2: del data[at:at + rng.randrange(1, 60)]
            case 3: data[at:at] = rng.randbytes(rng.randrange(1, 60))
            case 4: data[at:at + 4] = rng.choice([b'\xff'*4, b'\0'*4, b'\x7f\xff\xff\xff', struct.pack('<I', 2**31)])
            case 5: data[at:at + 64] = bytes(64)
            case 6: data += rng.randbytes(rng.randrange(1, 500))
    return bytes(data)


ODD = [None, True, -1, 0, 1, 7, 1e308, -.5, math.nan, math.inf, '', ' ', 'x'*300, '사진', '\ud800', '\x1b[31m', '\0', [], [[]], {}, [1, 2, 3], {'a': 1},
       10**30, 2**63, '../../x', 'a\nb', [None], '~nosuchuser', [[[[[[[[1]]]]]]]], {'a': {'a': {}}}, 'NaN', '𝟙', '1e5', [0]*50, '‮abc']


def altered(rng, value):
    "JSON with something else somewhere."
    value = copy.deepcopy(value)
    at = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
        if not keys: return rng.choice(ODD)
        key = rng.choice(keys)
        if rng.random() < .5 and isinstance(at[key], (dict, list)) and at[key]: at = at[key]; continue
        match rng.randrange(4):
            case 0 if isinstance(at, dict): del at[key]
            case 1 if isinstance(at, dict): at[rng.choice(['x', '', '__class__', key + ' '])] = at[key]
            case 2 if isinstance(at, list): at.append(at[key])
            case _: at[key] = rng.choice(ODD)
        return value


# ---- saved models ------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def model_file(tmp_path_factory):
    from drawn import loaders, three_breeds
    from fastai.vision.all import vision_learner
    from ch5clf.pretrained import lite0
    from ch5clf.saved import save_model
    folder = tmp_path_factory.mktemp('model')
    learn = vision_learner(loaders(three_breeds(folder), lambda f: 'abc'[int(f.name[0])]), lite0)
    return save_model(learn, folder/'m.safetensors')


@pytest.mark.parametrize('seed', seeds(6))
def test_saved(model_file, tmp_path, seed):
    "A damaged or forged file is refused in one line that names it; what loads is what was saved."
    from ch5clf.saved import load_model
    rng, good = random.Random(seed), model_file.read_bytes()
    n = struct.unpack('<Q', good[:8])[0]
    head, body = json.loads(good[8:8 + n]), good[8 + n:]
    for i in range(8):
        match rng.randrange(4):
            case 0: bad = damaged(rng, good[:8 + n]) + body
            case 1: bad = good[:8 + n] + damaged(rng, body)
            case 2:
                forged = json.dumps(altered(rng, head)).encode()
                bad = struct.pack('<Q', len(forged)) + forged + body
            case 3:
                meta = head['__metadata__']
                key = rng.choice(list(meta))
                try: told = json.dumps(altered(rng, json.loads(meta[key])))
                except ValueError: told = str(rng.choice(ODD))
                forged = json.dumps(head | {'__metadata__': meta | {key: told}}).encode()
                bad = struct.pack('<Q', len(forged)) + forged + body
        file = tmp_path/f'{i}.safetensors'
        file.write_bytes(bad)
        with within(20):
            try: model = load_model(file)
            except ValueError as e:
                assert str(e).startswith(file.name) and len(str(e)) < 1000 and '\n' not in str(e), (seed, i, str(e)[:300])
                continue
        want = load_model(model_file)
        assert model.about == want.about, (seed, i)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), want.state_dict().values())), (seed, i)


# ---- photos ------------------------------------------------------------------------------------------------------
def seed_photos():
    "Small pictures of all kinds that Pillow writes."
    rng, out = np.random.default_rng(0), {}
    for mode in ('RGB', 'RGBA', 'L', 'P', 'CMYK', 'I;16', '1', 'LA'):
        pixels = rng.integers(0, 256, (40, 47, 4), dtype=np.uint8)
        im = Image.fromarray(pixels[..., 0].astype('uint16')*200) if mode == 'I;16' else Image.fromarray(pixels).convert(mode)
        for suffix in ('jpg', 'png', 'gif', 'webp', 'bmp', 'tiff', 'ppm', 'ico', 'jp2', 'avif', 'pdf', 'eps', 'tga', 'icns', 'dds'):
            with contextlib.suppress(Exception):
                buffer = io.BytesIO()
                im.save(buffer, {'jpg': 'jpeg', 'jp2': 'jpeg2000'}.get(suffix, suffix))
                out[f'{mode.replace(";", "")}.{suffix}'] = buffer.getvalue()
    return out


PHOTOS = {}


@pytest.mark.parametrize('seed', seeds(4))
def test_photos(tmp_path, capsys, seed):
    "Each file is readable or has a row; both readers agree; nothing raises anything else."
    from ch5clf.photos import check_photos
    from ch5clf.pictures import SUFFIXES, BadPicture, open_picture
    PHOTOS.update({} if PHOTOS else seed_photos())
    rng = random.Random(seed)
    folder = tmp_path/'photos'
    for i in range(30):
        name, data = rng.choice(list(PHOTOS.items()))
        if rng.random() < .2: data = rng.choice(list(PHOTOS.values()))[:rng.randrange(300)] + data
        odd = rng.choice(['', '', '', ' ', '\n', '\x1b[2J', '사진', 'é', "'\"", '%s', '..', '\udcff', '-', '$(x)', 'a'*200])
        sub = folder/rng.choice(['a', 'b', 'a/b', 'c d'])
        sub.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ValueError, OSError): (sub/f'{odd}{i}{name}').write_bytes(damaged(rng, data))
    with within(60): rows = check_photos(folder)
    str(rows).encode()
    files = sorted(f for f in folder.rglob('*') if f.is_file())
    unusable = set(rows.file[~rows.usable.astype(bool)])
    for f in files:
        with within(10):
            try: im = open_picture(f)
            except BadPicture: continue
            assert im.mode == 'RGB' and im.size[0]*im.size[1] > 0
            if f.suffix in SUFFIXES: assert f.relative_to(folder).as_posix() not in unusable, (seed, f, [tuple(r) for r in rows.itertuples() if r.file == f.relative_to(folder).as_posix()])


# ---- presize store -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', seeds(4))
def test_store(tmp_path, capsys, seed):
    "Whatever happens to the files of a store: what it gives is the picture."
    from ch5clf.presize import presize_store, presized, stores_folder
    from ch5clf.sample import BREEDS, draw
    rng, files = random.Random(seed), []
    for i in range(6):
        files.append(tmp_path/f'{i}.png')
        draw([BREEDS[i]], [seed, i]).resize((60, 70)).save(files[-1])
    truth = [presized(f, 32) for f in files]
    presize_store(files, 32, progress=False)
    sound = {f: f.read_bytes() for f in stores_folder().rglob('*') if f.is_file()}
    for i in range(10):
        with contextlib.suppress(FileNotFoundError):
            for f in stores_folder().rglob('*'): f.unlink()
        for f, data in sound.items():
            match rng.randrange(4):
                case 0 | 1: f.write_bytes(damaged(rng, data))
                case 2: f.write_bytes(data)
                case 3: rng.choice([lambda: None, lambda: f.mkdir(), lambda: f.symlink_to('/nowhere'), lambda: f.write_bytes(b'')])()
        with within(20):
            try: store = presize_store(files, 32, progress=False)
            except OSError as e: # a folder in the place of the store
                assert str(f) in str(e) or f.name in str(e) or any(g.is_dir() for g in sound), (seed, i, e)
                for g in sound:
                    if g.is_dir(): g.rmdir()
                continue
            for f, t in zip(files, truth): assert (store[f] == t).all(), (seed, i, f)


# ---- progress ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', seeds(10))
def test_progress(tmp_path, seed):
    "No progress file, whatever stands in it, raises; a sound file of ours comes back; a damaged one is kept aside."
    from ch5clf import places
    rng, folder = random.Random(seed), places.progress_folder()
    entry = dict(tries=1, hints=0, solution=False, state='right', by='judged', first='x', when='x', last=1., best=1., own=0.)
    sound = dict(version=1, questions={'q10': entry}, disagreements=[dict(id='q10')], bets={'b': dict(guess=1)}, findings={'f': dict(x=2)})
    for i in range(12):
        folder.mkdir(exist_ok=True)
        for f in folder.iterdir(): f.unlink()
        data = json.dumps(altered(rng, sound)).encode() if rng.random() < .6 else damaged(rng, json.dumps(sound).encode())
        if rng.random() < .1: data = b'['*rng.choice([10, 100_000])
        file = folder/rng.choice(['progress.json']*4 + ['bets.json', 'findings.json'])
        file.write_bytes(data)
        progress = places.Progress()
        with within(5):
            found = progress.read()
            assert found['version'] == 1 and isinstance(found['questions'], dict), (seed, i)
            progress.change(lambda d: d['bets'].update(mine=dict(guess=3)))
            assert progress.read()['bets']['mine'] == dict(guess=3), (seed, i)
        kept = [f.read_bytes() for f in folder.iterdir() if f.suffix == '.json']
        try: whole = isinstance(json.loads(data.decode('utf-8-sig')), dict)
        except (ValueError, RecursionError): whole = False
        if not whole and file.name == 'progress.json': assert data in kept, (seed, i, 'set aside')


@pytest.mark.parametrize('seed', seeds(3))
def test_reports_of_odd_progress(monkeypatch, seed):
    "What a progress file of another hand says of answers never stops a report, a card or an answer."
    from ch5clf import places
    from ch5clf.questions import progress, questions, today
    rng, folder = random.Random(seed), places.progress_folder()
    entry = dict(tries=1, hints=0, solution=False, state='right', by='judged', first='2026-01-01', when='2026-01-01', last=1., best=1., own=0.)
    for i in range(12):
        folder.mkdir(exist_ok=True)
        known = {k: altered(rng, entry) for k in rng.sample(list(questions), 5)} | {rng.choice(['q999', '', '<b>']): entry}
        (folder/'progress.json').write_text(json.dumps(dict(version=1, questions=known)), encoding='utf-8')
        monkeypatch.setattr(places, 'progress', places.Progress())
        with within(20):
            report = progress(lang=rng.choice(['en', 'ko']))
            (repr(report) + report._repr_html_()).encode()
            today()
            for id in list(known)[:2]:
                if id in questions: assert questions[id].check('b').state and repr(questions[id].solution()) and questions[id]._repr_html_() is not None


# ---- quiz --------------------------------------------------------------------------------------------------------
TERMS = ['learning rate', 'softmax', 'exp', 'log', 'lr', 'not', 'never', 'because', '학습률', '가중치', '소프트맥스', '않', '보다', '때문에', '1e-3', '0.5', '%',
         'a', 'b', 'c', '1', '2', '(', ')', '[', ',', ';', '\n', '"', '`', '=', '->', '→', '¬', '2^3', '√', 'e', 'x'*50, 'ㄱ'*40, '.'*60, '-'*60, ' '*60, '1,'*30, '의 '*30, 'not '*20]


@pytest.mark.parametrize('seed', seeds(5))
def test_quiz(seed, monkeypatch):
    "Any text, quickly, to any question by any road, in both languages; and no reply holds markup of the answer's."
    from ch5clf.kinds import STATES, Pattern
    from ch5clf.questions import questions
    from ch5clf.cards import Fault
    rng, ids = random.Random(seed), list(questions)
    for i in range(40):
        q = questions[rng.choice(ids)]
        text = rng.choice(['', ' ']).join(rng.choice(TERMS) for _ in range(rng.choice([1, 3, 10, 60, 600])))
        if rng.random() < .2: text = rng.choice(TERMS)*rng.choice([10, 1000, 4000])
        if rng.random() < .1: text += '<script>alert(1)</script><img src=x>'
        answer = rng.choice([text, text, text, [text], {'a': text}, (text, 1), rng.choice(ODD)])
        limit = 5 if isinstance(q._kind, Pattern) else .5
        start = time.process_time()
        r = q.check(answer, lang=rng.choice(['en', 'ko', None, '', 7]))
        assert time.process_time() - start < limit + .2, (seed, i, q.id, str(answer)[:80], time.process_time() - start)
        assert r.state in STATES and 0 <= r.score <= 1 and not isinstance(q._last and q._last[1], Fault), (seed, i, q.id, answer)
        shown = repr(r) + r._repr_html_()
        shown.encode()
        assert '<script' not in r._repr_html_() and '<img' not in r._repr_html_()
        for act in (lambda: r.confirm(), lambda: r.in_language('ko'), lambda: q.mark(rng.choice(ODD)), lambda: q.disagree(rng.choice(ODD)),
                    lambda: q.choose(**{rng.choice(['x', 'order', 'a']): rng.choice(ODD)}), lambda: q.hint(lang=rng.choice(ODD)), lambda: q.ask(lang=rng.choice(['en', 'ko']))):
            if rng.random() < .3: repr(act()).encode('utf-8', 'replace')


# ---- the finder --------------------------------------------------------------------------------------------------
class Fickle(nn.Module):
    "A small model that does something odd at one of its calls."
    def __init__(self, what, at):
        super().__init__()
        self.body, self.norm, self.calls, self.what, self.at = nn.Linear(6, 8), nn.BatchNorm1d(8), 0, what, at
        self.head, self.memory = nn.Linear(8, 3), torch.zeros(4)
    def forward(self, x):
        self.calls += 1
        self.memory += 1
        x = self.head(self.norm(self.body(x)).relu())
        if self.calls >= self.at:
            match self.what:
                case 'nan': return x*math.nan
                case 'inf': return x + math.inf
                case 'error': raise ValueError
                case 'interrupt': raise KeyboardInterrupt
                case 'shape': return x[:, :1]
                case 'detached': return x.detach()
                case 'integers': return x.long()
                case 'tuple': return x, x
                case 'none': return None
                case 'freeze': self.requires_grad_(False)
                case 'grow': self.extra = nn.Parameter(torch.zeros(3))
                case 'seed': torch.manual_seed(0); random.seed(0); np.random.seed(0)
                case 'eval': self.eval()
                case 'constant': return x*0
        return x


def condition(model, opt):
    return {k: v.clone() for k, v in model.state_dict().items()}, copy.deepcopy(opt.state_dict()), [p.requires_grad for p in model.parameters()], model.training, torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b) or (a.isnan() == b.isnan()).all() and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize('seed', seeds(4))
def test_finder(seed):
    "Odd options, models and batches: a finding or a clear refusal, and all is as before."
    from ch5clf.lr_finder import find_lr
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kinds = ['nan', 'inf', 'error', 'interrupt', 'shape', 'detached', 'integers', 'tuple', 'none', 'freeze', 'seed', 'eval', 'constant', '']
    for i in range(6):
        model = Fickle(rng.choice(kinds), rng.choice([1, 2, 5, 20, 60]))
        opt = rng.choice([torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])(model.parameters(), 1e-3)
        x, y = torch.randn(64, 6), torch.randint(3, (64,))
        batches = list(zip(x.split(16), y.split(16)))
        if rng.random() < .3: batches = rng.choice([[], batches[:1], None, iter(batches), [(x, y, y)], [x], x, [(x*math.nan, y)], [(x, y + 7)], [(x[:1], y[:1])], {'a': 1}, 7])
        options = {rng.choice(['start', 'end', 'growth', 'repeats', 'width', 'peak', 'lr', 'accumulate', 'steps', 'features']): rng.choice(ODD + [slice(1e-3), (1, 2), 1e-3])
                   for _ in range(rng.choice([0, 0, 1, 2]))}
        before = condition(model, opt)
        with within(30):
            try: found = find_lr(model, opt, rng.choice([nn.functional.cross_entropy]*5 + [lambda p, y: 3., lambda p, y: None]), batches, progress=False, **options)
            except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as e:
                if options or not isinstance(batches, list): assert str(e) or model.what == 'error', (seed, i, options, e)
            else: repr(found).encode(); assert isinstance(found.why, str)
        after = condition(model, opt)
        if model.what == 'seed': before, after = before[:-1], after[:-1]
        if model.what != 'grow': assert same(before, after), (seed, i, model.what, options)


# ---- the command line --------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', seeds(6))
def test_command_line(tmp_path, monkeypatch, seed):
    "Any arguments: a known exit code and words, never a traceback; what lay there is still there."
    from ch5clf.cli import main
    rng = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    (tmp_path/'home').mkdir()
    mine = tmp_path/'mine.txt'
    mine.write_text('mine')
    names = ['', ' ', '.', '..', '/', '~', '~nosuchuser', 'mine.txt', 'mine.txt/x', 'a'*300, 'x/'*400, '-', '--', '-x', '--all', '--lang', 'ko', 'xx', '\0', 'a\nb', '\x1b[2J', '\udcff', '사진',
             'quiz', 'course', 'q10', 'q99', 'Q10', '10', 'q1q', '/dev/null', '/proc/self/mem', '*', '%s', '{}', '$HOME', 'con', '-h', '--version', '--copy-only', '--no-browser']
    for i in range(12):
        args = [rng.choice(['course', 'quiz', 'predict', 'check', 'train', 'sample', 'nonsense', *names])] + rng.choices(names, k=rng.randrange(4))
        if args[0] == 'course' and '--copy-only' not in args: args.append('--copy-only')
        if args[0] in ('sample', 'train') : args = args[:1] + ['-h']
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, 'stdin', io.StringIO(rng.choice(['', 'a\n', 'quit\n', '\n'*50, 'hint\nb\nwhy\n'])))
        with within(60), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: code = main(args)
            except SystemExit as e: code = e.code
        assert code in (0, 1, 2, 130), (seed, i, args, code, err.getvalue()[-300:])
        assert 'Traceback' not in err.getvalue() + out.getvalue() and mine.read_text() == 'mine', (seed, i, args)
        if code == 2: assert err.getvalue().strip() and '\x1b' not in err.getvalue(), (seed, i, args, err.getvalue())


# ---- half precision ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('seed', seeds(3))
def test_precision(seed):
    "Fits that fail anywhere, at any precision: the next one works, and no autocast stays on."
    from fastai.basics import Callback, DataLoader, DataLoaders, Learner
    from fastai.losses import CrossEntropyLossFlat
    from ch5clf.precision import mixed_precision
    rng = random.Random(seed)
    torch.manual_seed(seed)
    data = [(torch.randn(6), torch.tensor(i % 3)) for i in range(48)]
    dls = DataLoaders(DataLoader(data, bs=8, num_workers=0), DataLoader(data[:8], bs=8, num_workers=0))
    events = [e for e in dir(Callback) if e.startswith(('before_', 'after_'))] or ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'before_step', 'after_step', 'after_batch']
    for i in range(4):
        learn = Learner(dls, nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), CrossEntropyLossFlat())
        with learn.no_bar(), learn.no_logging():
            dtype = rng.choice([None, torch.float16, torch.bfloat16, *(ODD if rng.random() < .2 else []), torch.float64])
            try: cb = mixed_precision(learn, dtype)
            except (ValueError, TypeError) as e:
                assert str(e)
                continue
            for _ in range(4):
                error, event, at = rng.choice([ValueError('x'), KeyboardInterrupt(), RuntimeError('y'), MemoryError('z')]), rng.choice(events), rng.randrange(12)
                class Fault(Callback):
                    order, seen = rng.choice([-50, 0, 50, 10**6]), 0
                def fault(self):
                    self.seen += 1
                    if self.seen > at: raise error
                setattr(Fault, event, fault)
                with within(30), contextlib.suppress(type(error)): learn.fit(1, rng.choice([1e-3, 1e30, math.nan]), cbs=Fault())
                assert not torch.is_autocast_enabled('cpu'), (seed, i, event)
                for p in learn.model.parameters(): p.data, p.grad = torch.randn_like(p), None # fastai's own fits begin with what is left there
                learn.opt = None
            learn.fit(1, 1e-3)
            assert all(p.isfinite().all() and p.dtype == torch.float32 for p in learn.model.parameters()), (seed, i)
            assert learn.get_preds()[0].isfinite().all()

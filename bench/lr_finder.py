"""Learning-rate finders compared: `python bench/lr_finder.py [--photos FOLDER] [--task NAME ...] [--part PART ...]`.

Tasks, halves and claims stand in bench/lr_tasks.py. Parts: truth (one-cycle at fixed rates),
finders, time (on a quiet machine), report. A run that is stored in bench/results/lr_finder.json is not
repeated (delete it to begin anew), and none is begun after --seconds: call again until it says "complete".
Writes bench/results/lr_finder.md, and for the chapter ch5clf/runs/lr_finder.json and lr_sweep.json. PHOTOS is a folder
with pets_dev/ and clothing_dev/ (real photos, not in this repository). torch-lr-finder is wanted:
pip install --no-deps torch-lr-finder. Lightning is not installed; its rule is written out in `lightning_rule`.
"""
import argparse, contextlib, io, json, math, time, warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from lr_tasks import CACHE, GROUPS, HELD_OUT, KINDS, SLOW, TUNING, Rows, _pictures, learner, shaped, task

SEEDS = (11, 12, 13, 14, 15)  # of the finders; the truth has 1 to 5, 1 to 3 where a training takes long
ROOT = Path(__file__).resolve().parents[1]
RAW, TABLE = ROOT/'bench'/'results'/'lr_finder.json', ROOT/'bench'/'results'/'lr_finder.md'


def truth_seeds(name): return (1, 2, 3) if name in SLOW else (1, 2, 3, 4, 5)


def trained(t, rate, seed):
    "Validation loss, error and CPU seconds of one-cycle at this peak rate."
    learn = learner(t, seed)
    clock = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(t.epochs, shaped(t, rate))
    loss, *error = map(float, learn.recorder.values[-1][1:])
    return dict(loss=loss, error=error[0] if error else None, cpu=round(time.process_time() - clock, 2))


# ---- the finders: each gives a dict of rule -> rate (None: refused) ----------------------------------------------
def groups_of(t): return shaped(t, 1e-3) if t.spread != 1 else None


def ours(t, seed):
    from ch5clf.lr_finder import find_lr
    f = find_lr(learner(t, seed), lr=groups_of(t), progress=False)
    low, high = f.interval or (None, None)
    answer = dict(rate=f.best, low=low, high=high, updates=len(f.lrs), spread=f.spread, why=f.why)
    return dict(best=answer, **(f.suggest._asdict() if f.suggest else {}))


def race(t, seed, share=.5):
    from ch5clf.lr_finder import find_lr
    f = find_lr(learner(t, seed), lr=groups_of(t), race=t.epochs, share=share, progress=False)
    heats = [[int(h.updates), float(h.rate), float(h.loss)] for h in f.heats.itertuples()]
    return dict(race=dict(rate=f.best, updates=int(f.heats.updates.sum()), length=f.length, heats=heats, why=f.why))


def fastai_rules(t, seed):
    from fastai.callback.schedule import minimum, slide, steep, valley
    learn = learner(t, seed)
    with learn.no_bar(): found = learn.lr_find(show_plot=False, suggest_funcs=(minimum, steep, valley, slide))
    return found._asdict()


def plain_loop(t, seed):
    "The same model, optimiser and batches without fastai, for finders that take one rate for all (None: cannot)."
    if t.spread != 1 or t.held or t.clip: return None
    learn = learner(t, seed)
    params = learn.model.parameters()
    opt = {'SGD': partial(torch.optim.SGD, momentum=.9), 'plain SGD': torch.optim.SGD, 'AdamW': torch.optim.AdamW,
           'RMSprop': torch.optim.RMSprop,
           'Adam': partial(torch.optim.AdamW, betas=(.9, .99), eps=1e-5, weight_decay=.01)}[t.opt](params, lr=1e-3)
    loader = torch.utils.data.DataLoader(Rows(*t.data[:2]), batch_size=t.bs, shuffle=True, drop_last=True)
    return learn.model, opt, t.loss, loader


def torch_lr_finder(t, seed):
    from torch_lr_finder import LRFinder
    import matplotlib.pyplot as plt
    if (loop := plain_loop(t, seed)) is None: return dict(steepest=None)
    model, opt, loss, loader = loop
    for group in opt.param_groups: group['lr'] = 1e-7
    finder = LRFinder(model, opt, loss, device='cpu')
    finder.range_test(loader, end_lr=10, num_iter=100)
    _, rate = finder.plot(suggest_lr=True)
    plt.close('all')
    finder.reset()
    return dict(steepest=float(rate))


def lightning_rule(t, seed):
    "100 steps from 1e-8 to 1, losses averaged as they come (0.98), stopped at four times the best; of the points without the first ten and the last, the most negative gradient."
    if (loop := plain_loop(t, seed)) is None: return dict(by_rate=None, by_index=None)
    model, opt, loss, loader = loop
    model.train()
    rates, smooth, average, best = [], [], 0., math.inf
    batches = (b for _ in range(10**6) for b in loader)
    for i in range(100):
        rate = 1e-8*10**(8*i/100)
        for group in opt.param_groups: group['lr'] = rate
        x, y = next(batches)
        l = loss(model(x), y)
        opt.zero_grad(); l.backward(); opt.step()
        average = .98*average + .02*l.item()
        rates.append(rate); smooth.append(average/(1 - .98**(i + 1)))
        if i > 1 and smooth[-1] > 4*best: break
        best = min(best, smooth[-1])
    x, y = np.array(rates[10:-1]), np.array(smooth[10:-1])
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) < 2: return dict(by_rate=None, by_index=None)
    return dict(by_rate=float(x[np.gradient(y, x).argmin()]), by_index=float(x[np.gradient(y).argmin()]))


FINDERS = {'ours': ours, 'race': race, 'race, whole': partial(race, share=1.), 'fastai': fastai_rules,
           'torch-lr-finder': torch_lr_finder, 'Lightning': lightning_rule}


def measured(f):
    "Result, seconds of wall clock and of CPU, and how far the resident memory rose, in MiB."
    def status(key):
        lines = Path('/proc/self/status').read_text().splitlines() if Path('/proc/self').exists() else []
        return next((int(l.split()[1])/1024 for l in lines if l.startswith(key)), math.nan)
    with contextlib.suppress(OSError): Path('/proc/self/clear_refs').write_text('5')
    before, began, cpu = status('VmRSS'), time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        result = f()
    cost = dict(seconds=time.perf_counter() - began, cpu=time.process_time() - cpu, memory=status('VmHWM') - before)
    return result, cost


# ---- the data chapter's learner: time and the two modes ----------------------------------------------------------
def chapter_learner(seed, frozen=True):
    from ch5clf.data import pet_dls
    from ch5clf.pretrained import lite0
    from fastai.vision.all import set_seed, vision_learner
    set_seed(seed)
    learn = vision_learner(pet_dls(_pictures('paper', None), num_workers=0), lite0)
    if not frozen: learn.unfreeze()
    return learn


def timed(seed, frozen, how):
    from ch5clf.lr_finder import find_lr
    learn = chapter_learner(seed, frozen)
    learn.dls.train.one_batch()
    def run():
        if how == 'fastai':
            with learn.no_bar(): return learn.lr_find(show_plot=False)[0], 100
        f = find_lr(learn, progress=False, features=how == 'features')
        return f.best, len(f.lrs)
    return measured(run)


# ---- keeping ------------------------------------------------------------------------------------------------------
def load(): return json.loads(RAW.read_text(encoding='utf-8')) if RAW.exists() else {}


def add(part, rows):
    "Keep rows; several processes may do so at once."
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE/'raw.lock'):
        raw = load()
        raw.setdefault(part, []).extend(rows)
        lines = [f'{json.dumps(k)}: [\n' + ',\n'.join(map(json.dumps, v)) + '\n]' for k, v in raw.items()]
        RAW.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')


def known(part, **row): return any(all(r.get(k) == v for k, v in row.items()) for r in load().get(part, []))


# ---- parts: each yields (part, what makes it one run, function that gives its rows) -----------------------------------
def truth(t):
    for seed in truth_seeds(t.name):
        for rate in map(float, t.rates):
            key = dict(task=t.name, rate=rate, seed=seed)
            yield 'truth', key, lambda: [dict(**key, **trained(t, rate, seed))]


def finders(t):
    for seed in SEEDS:
        for finder, f in FINDERS.items():
            key = dict(task=t.name, finder=finder, seed=seed)
            def rows():
                found, cost = measured(lambda: f(t, seed))
                told = {rule: x if isinstance(x, dict) else dict(rate=None if x is None else float(x))
                        for rule, x in found.items()}
                return [dict(**key, rule=rule, **x, **cost) for rule, x in told.items()]
            yield 'finders', key, rows


def timing():
    "The data chapter's learner at two threads, as readers have it; only on a quiet machine are these worth anything."
    for seed in (1, 2, 3):
        for body, how in (('frozen', 'features'), ('frozen', 'exact'), ('frozen', 'fastai'), ('unfrozen', 'exact'),
                          ('unfrozen', 'fastai')):
            key = dict(body=body, how=how, seed=seed)
            def rows():
                (rate, updates), cost = timed(seed, body == 'frozen', how)
                return [dict(**key, rate=None if rate is None else float(rate), updates=updates, **cost)]
            yield 'time', key, rows


# ---- judging and telling --------------------------------------------------------------------------------------------
DEFAULT = 2e-3  # what the user of a finder that refuses would take
CONSTANTS = (1e-3, 2e-3, 3e-3)


def truth_of(raw, name, what='loss'):
    "Rates, and the mean over seeds at each; what is not finite counts as the largest finite value of the sweep."
    rows = [r for r in raw['truth'] if r['task'] == name and r[what] is not None]
    rates = sorted({r['rate'] for r in rows})
    top = max((r[what] for r in rows if math.isfinite(r[what])), default=math.nan)
    def mean(x): return np.mean([r[what] if math.isfinite(r[what]) else top for r in rows if r['rate'] == x])
    return np.array(rates), np.array([mean(x) for x in rates])


def noise_of(raw, name, what='loss'):
    "Standard error of the mean at the best rate of the sweep."
    rates, values = truth_of(raw, name, what)
    told = [r[what] for r in raw['truth'] if (r['task'], r['rate']) == (name, rates[values.argmin()])]
    return float(np.std(told, ddof=1)/len(told)**.5)


def regret(raw, name, rate, what='loss'):
    rates, values = truth_of(raw, name, what)
    if not len(rates): return math.nan
    return float(np.interp(math.log(rate or DEFAULT), np.log(rates), values) - values.min())


def seconds_of_training(raw, name):
    told = [r['cpu'] for r in raw['truth'] if r['task'] == name and r.get('cpu')]
    return float(np.median(told)) if told else math.nan


def answers(raw):
    "A row for each run of each arm, the constants among them; only tasks whose truth has all its seeds."
    import pandas as pd
    done = [n for n in KINDS if {s for s in truth_seeds(n)} <= {r['seed'] for r in raw['truth'] if r['task'] == n}]
    rows = [dict(task=r['task'], arm=f'{r["finder"]}: {r["rule"]}', seed=r['seed'], rate=r['rate'], cpu=r['cpu'])
            for r in raw['finders'] if r['task'] in done]
    rows += [dict(task=n, arm=f'plain {c:g}', seed=s, rate=c, cpu=0.) for n in done for c in CONSTANTS for s in SEEDS]
    table = pd.DataFrame(rows)
    table['regret'] = [regret(raw, t, None if r != r else r) for t, r in zip(table.task, table.rate)]
    table['error'] = [regret(raw, t, None if r != r else r, 'error') for t, r in zip(table.task, table.rate)]
    table['share'] = [c/seconds_of_training(raw, t) for t, c in zip(table.task, table.cpu)]
    return table


def best_constant(raw, names):
    "The constant with the lowest worst regret over these tasks, found in hindsight."
    grid = np.logspace(-4, 0, 81)
    return float(min(grid, key=lambda c: max(regret(raw, n, c) for n in names)))


def coverage(raw):
    "Of all pairs of one seed's interval and another seed's answer, the share that fits; and how many pairs."
    rows = [r for r in raw['finders'] if (r['finder'], r['rule']) == ('ours', 'best') and r['rate']]
    pairs = [a['low'] <= b['rate'] <= a['high'] for a in rows if a.get('low') for b in rows
             if a['task'] == b['task'] and a['seed'] != b['seed']]
    return (float(np.mean(pairs)), len(pairs)) if pairs else (math.nan, 0)


def arms_table(raw, table, names):
    "Arms that ran on all of `names`, ordered by their worst regret; all of them with at least three seeds."
    full = [a for a, g in table[table.task.isin(names)].groupby('arm') if all((g.task == n).sum() >= 3 for n in names)]
    lines = ['| arm | median regret | worst | largest spread of rates | refused | of a training, CPU |',
             '| --- | --- | --- | --- | --- | --- |']
    rows = []
    for arm in full:
        g = table[(table.arm == arm) & table.task.isin(names)]
        medians = g.groupby('task').regret.median()
        rates = g.dropna(subset='rate').groupby('task').rate
        spread = (rates.max()/rates.min()).max()
        rows.append((g.regret.max(), f'| {arm} | {medians.median():.3f} | {g.regret.max():.3f} | {spread:.2f} | '
                                     f'{int(g.rate.isna().sum())} of {len(g)} | {g.share.median():.2f} |'))
    c = best_constant(raw, names)
    worst = [regret(raw, n, c) for n in names]
    rows.append((max(worst), f'| the best constant in hindsight, {c:.2g} | {np.median(worst):.3f} | {max(worst):.3f} '
                             '| 1.00 | 0 | 0 |'))
    return lines + [line for _, line in sorted(rows, key=lambda r: r[0])]


def task_table(raw, table, name):
    rates, losses = truth_of(raw, name)
    floor = rates[losses < losses.min() + max(.02, noise_of(raw, name))]
    lines = [f'### {name}: {KINDS[name]}', '',
             f'Best of {len(rates)} rates: {rates[losses.argmin()]:.2g}, loss {losses.min():.3f} (standard error '
             f'{noise_of(raw, name):.3f}); the floor goes from {floor.min():.2g} to {floor.max():.2g}. A training takes '
             f'{seconds_of_training(raw, name):.1f} CPU seconds.', '',
             '| arm | rates | median regret | worst | error regret, points | of a training, CPU |',
             '| --- | --- | --- | --- | --- | --- |']
    mine = table[table.task == name]
    for arm, g in sorted(mine.groupby('arm'), key=lambda x: x[1].regret.max()):
        told = ', '.join('-' if r != r else f'{r:.2g}' for r in (g.rate if g.rate.nunique() > 1 else g.rate[:1]))
        error = f'{100*g.error.median():.1f}' if g.error.notna().any() else '-'
        lines.append(f'| {arm} | {told} | {g.regret.median():.3f} | {g.regret.max():.3f} | {error} | {g.share.median():.2f} |')
    return lines + ['']


def report(raw):
    from ch5clf.lesson import versions
    table = answers(raw)
    seen = [n for n in KINDS if ((table.task == n) & ~table.arm.str.startswith('plain')).any()]
    made = ', '.join(f'{k} {v}' for k, v in versions().items())
    covered, pairs = coverage(raw)
    text = ['# Learning-rate finders', '', f'{time.strftime("%Y-%m-%d")}, CPU, one thread, other work beside it: CPU '
            f'seconds are the ones to compare. {made}.', '',
            'Truth: one-cycle at fixed peak rates, mean over seeds. Regret: validation loss above the lowest of the '
            'sweep, read off in log rate; outside the sweep the loss at its end counts. A refusal counts as 2e-3. Claims '
            'and what would refute them: bench/lr_tasks.py.', '',
            f'**Not run yet** (no verdict about these): {", ".join(n for n in KINDS if n not in seen) or "nothing"}.', '',
            f'Interval of `find_lr`: {covered:.0%} of the answers of other seeds lie within it ({pairs} pairs).'
            if pairs else 'Interval of `find_lr`: no pairs of runs yet.', '']
    for half, names in (('Tuning half: seen', TUNING), ('Held-out half: run once', HELD_OUT)):
        ran = [n for n in names if n in seen]
        if not ran: continue
        ours = [n for n in ran if ((table.task == n) & table.arm.str.startswith('race')).sum() >= 3]
        text += [f'## {half}', '']
        if ours: text += [f'Tasks on which the race ran: {", ".join(ours)}.', '', *arms_table(raw, table, ours), '']
        for name in ran: text += task_table(raw, table, name)
    TABLE.write_text('\n'.join(text), encoding='utf-8')
    for_the_chapters(raw, table)


ARMS = ('ours: best', 'ours: last_fall', 'race: race', 'race, whole: race', 'fastai: minimum', 'fastai: steep', 'fastai: valley', 'fastai: slide',
        'torch-lr-finder: steepest', 'Lightning: by_index')


def for_the_chapters(raw, table):
    "Write what chapter 02 and the page of claims read: tasks whose truth is complete, and on which every finder ran five times."
    from ch5clf.lesson import record
    ran = table.groupby(['task', 'arm']).seed.nunique().unstack()
    always = [a for a in ARMS if a != 'ours: last_fall'] # a test that refuses has no such point
    whole = [n for n in KINDS if n in ran.index and (ran.loc[n].reindex(always) >= 5).all()]
    rows = [dict(arm=r.arm, seed=r.seed, task=r.task, kind=GROUPS[r.task], half='seen' if r.task in TUNING else 'held out',
                 rate=None if r.rate != r.rate else r.rate, share=round(r.share, 3))
            for r in table[table.task.isin(whole) & table.arm.isin(ARMS)].itertuples()]
    record(ROOT/'ch5clf'/'runs'/'lr_finder.json', rows, 'Learning-rate finders, five seeds a task: the rate of every rule (null: it gave '
           'none), and what it cost as a share of one training. Sweeps of the same tasks: lr_sweep. "held out": the method was not tuned on it.')
    top = {n: max(r['loss'] for r in raw['truth'] if r['task'] == n and r['loss'] is not None and math.isfinite(r['loss'])) for n in whole}
    def loss(r): return r['loss'] if r['loss'] is not None and math.isfinite(r['loss']) else top[r['task']]
    record(ROOT/'ch5clf'/'runs'/'lr_sweep.json', [dict(arm=r['task'], seed=r['seed'], rate=r['rate'], loss=float(f'{loss(r):.5g}'), error=r['error'])
           for r in raw['truth'] if r['task'] in whole], 'One-cycle at fixed peak rates: validation loss and error at the end. A loss '
           'without a number counts as the largest of its task.')


PARTS = dict(truth=truth, finders=finders)  # of each task


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--photos')
    ask.add_argument('--task', nargs='*', default=TUNING + HELD_OUT)
    ask.add_argument('--part', nargs='*', default=[*PARTS, 'time', 'report'])
    ask.add_argument('--finder', nargs='*', default=list(FINDERS))
    ask.add_argument('--seconds', type=float, default=200)
    a = ask.parse_args()
    torch.set_num_threads(1)
    ends = time.perf_counter() + a.seconds
    for part in [p for p in a.part if p in PARTS]:
        for name in a.task:
            t = task(name, a.photos)
            for kind, key, rows in PARTS[part](t):
                if key.get('finder', a.finder[0]) not in a.finder or known(kind, **key): continue
                if time.perf_counter() > ends: return print('call again:', kind, key)
                add(kind, rows())
    for kind, key, rows in timing() if 'time' in a.part else ():
        if known(kind, **key): continue
        if time.perf_counter() > ends: return print('call again:', kind, key)
        add(kind, rows())
    if 'report' in a.part: report(load())
    print('complete')


if __name__ == '__main__': main()

"""The recipe against fastai's `fine_tune`, each at its best: `python bench/finetune.py SET SEEDS [--photos DIR] [--seconds 200]`, then `python bench/finetune.py report`.

SET is paper, pets or clothing; SEEDS such as 1-10. Writes ch5clf/runs/finetune_rivals.json (a row for each run; what is there is not run again)
and, with `report`, bench/results/finetune.md. DIR holds pets_dev/images and clothing_dev/images (real photos, not in this repository).

Arms: `fine_tune(epochs)` for 1, 3, 5 and 10 epochs, with batch-norm moving and with `frozen_batchnorm()`; the linear probe; the recipe
(`fit_recipe`: probe, then 4 epochs of everything). Of each `fine_tune` the number of epochs is chosen by the error on *validation* pictures
(of equals the shortest), seed by seed, and only the chosen run's seconds count: in its favour. The recipe has nothing to choose.
lite0, 128 px, float32, one thread, the same cached loader on all sides; seconds are processor seconds. Errors by `ch5clf.measure`, on test
pictures that nothing was chosen on. Every seed draws pictures, split, head and batches; its arms share them.

Goals, written down before the runs (paired by seed, 95 % intervals of the mean, Student's t, clear of the goal; wider for photographs,
of which each seed divides the same ones anew):
  1 the probe makes no more errors than plain `fine_tune` at its best (margin 2 points), in a quarter of its time, on each set;
  2 the recipe makes at most half of plain `fine_tune`'s errors on paper pets;
  3 the recipe makes fewer errors than `fine_tune` with batch-norm held on each set, in at most 1.5 times its time.
A goal is refuted where the mean is on the wrong side, and not decided where only the interval is.
"""
import argparse, json, sys, time, warnings
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import finetune_runs
from finetune_runs import HELD_OUT, HIGH, NAMES, STEPS, Arms, files_of, held, keep, rows_of
from ch5clf.callbacks import NoValidation
from ch5clf.lesson import differences
from ch5clf.recipe import linear_probe, unfrozen_fit

RESULTS = Path(__file__).resolve().parent/'results'
RUNS = RESULTS.parents[1]/'ch5clf'/'runs'/'finetune_rivals.json'
EPOCHS, VALID = (1, 3, 5, 10), dict(pets=4, clothing=10) # validation photos of each class, taken from the training photos
# test over training pictures, where each seed divides the same photographs anew
REDIVIDED = {NAMES[k]: HELD_OUT[k]/(STEPS[k][0] - n) for k, n in VALID.items()} | {NAMES['paper']: 0.}
ABOUT = ' '.join(__doc__.split('\n\n')[2].split())


def with_validation(kind, seed, photos):
    "As `files_of`, and for photographs some of each class put aside to choose by."
    by_class, valid, test = files_of(kind, seed, photos)
    if kind == 'paper': return by_class, valid, test
    k = VALID[kind]
    return {c: files[:-k] for c, files in by_class.items()}, [f for files in by_class.values() for f in files[-k:]], test


def arms_of(arms, known):
    "A row for each run of a seed that is not in `known`."
    if not {'linear probe', 'recipe'} <= known:
        learn = arms.begin()
        arms.clocked(linear_probe, learn)
        yield arms.row('linear probe', learn)
        arms.order()
        arms.clocked(unfrozen_fit, learn, 4, HIGH, cbs=[NoValidation()])
        yield arms.row('recipe', learn)
    for epochs in EPOCHS:
        for hold in (False, True):
            arm = f'fine_tune({epochs})' + (', batch-norm held' if hold else '')
            if arm in known: continue
            learn = arms.begin()
            arms.clocked(learn.fine_tune, epochs, cbs=[NoValidation(), *held(hold)])
            yield arms.row(arm, learn, epochs=epochs, batchnorm='held' if hold else 'moving')


def run(kind, seeds, photos, seconds):
    finetune_runs.files_of, begun = with_validation, time.monotonic()
    for seed in seeds:
        if time.monotonic() - begun > seconds: return
        known = {r['arm'] for r in rows_of(RUNS) if (r['set'], r['seed']) == (NAMES[kind], seed)}
        if len(known) == 2 + 2*len(EPOCHS): continue
        arms = Arms(kind, seed, photos, STEPS[kind][0] - VALID.get(kind, 0))
        for row in arms_of(arms, known):
            if row['arm'] in known: continue
            keep(RUNS, {k: v for k, v in row.items() if 'bins' not in k}, ABOUT, timed=True)
            print(f'{time.monotonic() - begun:.0f} s', {k: row[k] for k in ('set', 'seed', 'arm', 'wrong', 'total', 'seconds')}, flush=True)


def chosen(runs, batchnorm):
    "Of each seed the run whose number of epochs has the fewest validation errors; of equals the shortest."
    tries = runs[runs.batchnorm == batchnorm].sort_values(['seed', 'valid_error', 'epochs'])
    return tries.groupby('seed').first()


def complete(runs):
    "Only seeds in which every arm was run."
    return runs[runs.groupby('seed').arm.transform('nunique') == 2 + 2*len(EPOCHS)]


def judged(value, high, margin=0.):
    return 'met' if high <= margin else 'refuted' if value > margin else 'not decided'


def share_of(ours, theirs, at_most, again):
    "Ratio of the means and its range over seeds, and whether `ours` is at most so many times `theirs` (paired, Student's t)."
    ours, theirs = ours.align(theirs)
    d, each = differences(ours, theirs*at_most, unit='', redivided=again), ours/theirs
    spread = f' ({each.min():.2f} to {each.max():.2f})'*(d.n > 1)
    return f'{ours.mean()/theirs.mean():.2f}{spread}', decided(d)


def decided(d, margin=0.): return judged(d.mean, d.high, margin) if d.n > 4 else 'not decided'


def sets():
    "Runs of each set, whole seeds only."
    runs = {of: complete(runs) for of, runs in pd.DataFrame(rows_of(RUNS)).groupby('set', sort=False)}
    return {of: runs[of] for of in NAMES.values() if of in runs and len(runs[of])}


def goals():
    "Each goal on each set: what it says, the set, what came out, the verdict."
    for of, runs in sets().items():
        again, n = REDIVIDED[of], f'n = {runs.seed.nunique()}'
        mine = {arm: runs[runs.arm == arm].set_index('seed') for arm in ('linear probe', 'recipe')}
        plain, still = chosen(runs, 'moving'), chosen(runs, 'held')
        for ours, theirs, name, margin, share in (('linear probe', plain, 'plain `fine_tune` at its best', 2., .25),
                                                  ('recipe', still, '`fine_tune` with batch-norm held at its best', 0., 1.5)):
            d = differences(mine[ours].error, theirs.error, redivided=again)
            yield f'The {ours} makes {"no more" if margin else "fewer"} errors than {name}{f" (margin {margin:g} points)" if margin else ""}', of, d.text, decided(d, margin)
            text, verdict = share_of(mine[ours].seconds, theirs.seconds, share, 0.)
            yield f'The {ours} takes at most {share:g} of the processor time of {name}', of, f'{text} of it, {n}', verdict
        if of != NAMES['paper']: continue
        text, verdict = share_of(mine['recipe'].error, plain.error, .5, again)
        yield 'The recipe makes at most half of the errors of plain `fine_tune` at its best', of, f'{text} of them, {n}', verdict


def report():
    data = json.loads(RUNS.read_text(encoding='utf-8'))
    made, lines, told = data['made'], ['# The recipe against `fine_tune`, each at its best', '', data['about'], ''], sets()
    lines += [f'{made["date"]}, {made["machine"]}, torch {made["versions"]["torch"]}, fastai {made["versions"]["fastai"]}.', '', '## Goals', '',
              '| goal | set | result | verdict |', '| --- | --- | --- | --- |', *(f'| {" | ".join(g)} |' for g in goals())]
    for of, runs in told.items():
        where = f' ({runs.machine.iloc[0]})' if 'machine' in runs and runs.machine.notna().all() else ''
        lines += ['', f'## {of}: {runs.train.iloc[0]} training pictures, {runs.total.iloc[0]} test pictures, {runs.seed.nunique()} seeds{where}', '',
                  '| arm | error, mean (range over seeds) | loss | seconds |', '| --- | --- | --- | --- |']
        shown = {arm: g for arm, g in runs.groupby('arm', sort=False)} | {'fine_tune, epochs by validation': chosen(runs, 'moving'),
                                                                         'fine_tune, batch-norm held, epochs by validation': chosen(runs, 'held')}
        lines += [f'| {arm} | {g.error.mean():.1%} ({g.error.min():.1%} to {g.error.max():.1%}) | {g.loss.mean():.3f} | {g.seconds.mean():.1f} |' for arm, g in shown.items()]
    missing = [name for name in NAMES.values() if name not in told]
    lines += ['', f'Not run to an end yet: {", ".join(missing)}.'] if missing else []
    (RESULTS/'finetune.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print('\n'.join(lines))


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('what', choices=[*NAMES, 'report'])
    ask.add_argument('seeds', nargs='?', default='1-5')
    ask.add_argument('--photos', type=Path)
    ask.add_argument('--seconds', type=float, default=float('inf'))
    a = ask.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    if a.what == 'report': return report()
    if a.what != 'paper' and not a.photos: ask.error('real photos: give --photos DIR')
    first, last = (int(v) for v in f'{a.seeds}-{a.seeds}'.split('-')[:2])
    run(a.what, range(first, last + 1), a.photos, a.seconds)


if __name__ == '__main__': main()

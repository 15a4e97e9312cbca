"""Every claim with its verdict, from the recorded runs: `python bench/claims.py` writes bench/results/claims.md.

The verdicts alone also go into nbs/index.ipynb, and so into README.md.

A claim says that an arm is better than another. Its row holds, for each set, the paired differences of the two arms as the chapters
compute them (`differences` on `recorded` runs): mean, 95 % interval (Student's t; wider where seeds only divide the same photographs
anew), wins/ties/losses of the claim's arm, and the number of pairs. The verdict follows from these alone: on a set the claim holds where the interval lies on its side of zero (or, for
"no worse", below the margin), fails where it lies on the other, and is not decided where it reaches across. Fewer than five pairs decide
nothing.
Nothing is trained here; the scripts that recorded the runs wrote down before what would refute a claim. `--check` writes nothing and
exits with 1 where the page or the front page is not what these runs give.
"""
import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from ch5clf.lesson import differences, recorded

OURS_OF = 'chapter, our comparison'
PAGE, SETS = ROOT/'bench'/'results'/'claims.md', ('paper pets', 'Oxford pets', 'clothing')
UNDECIDED, HOLDS, FAILS, FEW = 'not decided', 'holds', 'does not hold', 'too few seeds'


@dataclass
class Claim:
    "What is said, by whom, where it is tried, and the differences (below zero speaks for it) on each set."
    text: str
    who: str # the chapter that we follow, the notes, or ours
    where: str # notebook, and section
    found: dict = field(default_factory=dict) # set -> Differences
    note: str = '' # what stands in place of a verdict
    plan: dict = field(default_factory=dict) # set -> pairs that its script plans

    def on(self, name):
        "The verdict on one set."
        d, line = self.found[name], self.found[name].margin or 0
        if d.n < 5: return FEW
        return HOLDS if d.high < line else FAILS if d.low > line else UNDECIDED

    @property
    def verdict(self):
        "One word where all sets agree, else what each says; 'so far' where a script plans more runs."
        said = {name: self.on(name) for name in self.found}
        early = 'so far: ' if any(d.n < self.plan.get(name, 0) for name, d in self.found.items()) else ''
        if len({*said.values()}) == 1: return early + next(iter(said.values()))
        return early + '; '.join(f'{word} ({", ".join(n for n in said if said[n] == word)})' for word in (HOLDS, FAILS, UNDECIDED, FEW) if word in said.values())


def cell(d, plan=0):
    "Differences in a cell of the table."
    def say(x):
        if d.unit != '%': return f'{x:+.2g}'
        return f'{x:+.1f}' if abs(x) >= .05 or not x else f'{x:+.2f}' # no "-0.0" beside a verdict
    n = f'n = {d.n}' + f' of {plan}'*(d.n < plan)
    if d.low == d.high: return f'{say(d.mean)}, the same for each of {d.n} seeds'.replace('-', '−')
    spread = f' ({say(d.low)} to {say(d.high)})' if d.n > 1 else ''
    return f'{say(d.mean)}{spread}; {d.wins}/{d.ties}/{d.losses}, {n}'.replace('-', '−')


def redivided(name):
    "Test over training pictures, where seeds divide the same ones anew: photographs, of which each puts a fifth aside."
    return 0. if name == 'paper pets' else .25


def on_sets(runs, treatment, baseline, sets=SETS, **kwargs):
    "Differences on each set of which both arms were run; seeds that only one arm has are left out."
    found = {}
    for name in sets:
        here = runs[runs['set'] == name]
        seeds = [set(here[here.arm == arm].seed) for arm in (treatment, baseline)]
        here = here[here.arm.isin((treatment, baseline)) & here.seed.isin(seeds[0] & seeds[1])]
        if len(here): found[name] = differences(treatment, baseline, here[['arm', 'seed', 'error']], value='error', redivided=redivided(name), **kwargs)
    return found


def by_set(name):
    "Runs whose arms are called 'set: arm', with the set as a column."
    runs = recorded(name)
    parts = runs.arm.str.split(': ', n=1, expand=True)
    return runs.assign(set=parts[0], arm=parts[1])


def whole(name):
    "Runs with all the training pictures that a set has."
    runs = recorded(name)
    return runs[runs.per_class == runs.groupby('set').per_class.transform('max')]


def planned(paper, photos=0): return {'paper pets': paper, 'Oxford pets': photos, 'clothing': photos}


# ------------------------------------------------------------------ 00
def data_claims():
    base, where = recorded('baseline'), '[00, section 4](../../nbs/00_data.ipynb)'
    paper = base[base.arm == 'paper pets']
    yield Claim('Five lines of fastai err on 15 to 40 of 100 paper pets, whatever the seed', 'ours', where,
                note=f'**{"holds" if paper.error.between(.15, .4).all() else "does not hold"}**: {paper.error.min():.0%} to {paper.error.max():.0%} in {len(paper)} seeds')
    if 'alike' in base:
        errors = paper.dropna(subset=['alike']).set_index('seed')
        yield Claim('Look-alikes dominate the confusion: a wrong answer names the look-alike more often than 1 in 11 (one set of pictures)', 'chapter',
                    where, {'paper pets': differences(1/11 + 0*errors.wrong, errors.alike/errors.wrong)}, plan=planned(20))
    where, plan = '[00, section 5](../../nbs/00_data.ipynb)', planned(20, 10)
    runs = by_set('presize')
    runs = runs[runs.groupby(['set', 'seed']).arm.transform('nunique') == 3] # whole triples only, as in the chapter
    yield Claim('Presizing, more pixels until the last step, lowers the error', 'chapter', where, on_sets(runs, 'fastai presizing', 'no margin'), plan=plan)
    yield Claim("`pet_dls` (one interpolation, real edges) is no worse than fastai's presizing (margin 1 point)", 'ours', where,
                on_sets(runs, 'one interpolation', 'fastai presizing', margin=1), plan=plan)
    runs, where, plan = by_set('cleaning'), '[00, section 6](../../nbs/00_data.ipynb)', planned(10)
    yield Claim('Perfect labels lower the test error of a short training (8 % had been wrong; one set of pictures and wrong labels)', OURS_OF, where,
                {'paper pets': differences('perfect', 'as found', recorded('riddle'), 'error')}, plan=plan)
    for kind in ('uniform', 'look-alike'):
        looked = runs[runs.arm == f'{kind} 8%: logistic: cleaned']
        found = {n: differences(g.chance.values, g.precision.values) for n, g in looked.groupby('set')}
        yield Claim(f'Train before you clean: a first model finds wrong labels better than chance (8 % wrong, {kind})', 'chapter', where, found, plan=plan)
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            arm = f'{kind} {share}%: logistic: '
            yield Claim(f'Cleaning lowers the error of logistic regression ({share} % wrong, {kind}; who is always right looks at {2*share} % of the pictures)',
                        OURS_OF, where, on_sets(runs, arm + 'cleaned', arm + 'as found'), plan=plan)
    for share in (8, 20, 40):
        arm = f'uniform {share}%: short: '
        yield Claim(f"Perfect labels lower the error of fastai's head after three epochs on features ({share} % wrong, uniform)",
                    OURS_OF, where, on_sets(runs, arm + 'perfect', arm + 'as found'), plan=plan)


# ------------------------------------------------------------------ 01
def loss_claims():
    where, aside = '[01, section 7](../../nbs/01_loss.ipynb)', '[an aside](../../nbs/asides/smoother_training.ipynb)'
    yield Claim('The gradient of cross-entropy is softmax minus target', 'chapter', where, note='**holds**: an identity, checked there to rounding')
    yield Claim('It is linear', 'chapter and notes', where, note='in the probabilities it is, in the logits it is not')
    yield Claim('So training is smoother than with squared error', 'chapter', aside,
                note='at one rate for both not decided; each at a rate of its own yes (five seeds of one small network and one pair of rates, measured there anew)')


# ------------------------------------------------------------------ 02
HEADS = {'paper pets': 'paper pets frozen', 'Oxford pets': 'pets head', 'clothing': 'clothing head'}
UNFROZEN = {'paper pets': 'paper pets unfrozen', 'clothing': 'clothing unfrozen'}
PROBED = {'paper pets': 'paper probe', 'Oxford pets': 'pets probe', 'clothing': 'clothing probe'}
SGD = {'digits': 'digits CNN', 'diabetes': 'diabetes MLP'}
FINDERS = range(11, 16) # seeds of the finders; the k-th meets the k-th recorded curve


def curves(task):
    "Rates, and a curve of validation loss for each seed; what is not finite counts as the largest finite value of the task."
    sweep = recorded('lr_sweep')
    table = sweep[sweep.arm == task].pivot(index='seed', columns='rate', values='loss').dropna(axis=1)
    return table.columns.to_numpy(), table.where(np.isfinite(table), table[np.isfinite(table)].max().max())


def at_rates(task, rates):
    "Loss of the k-th curve at the k-th rate, read off in log rate."
    x, table = curves(task)
    return {seed: float(np.interp(np.log(rate), np.log(x), losses)) for (seed, losses), rate in zip(table.iterrows(), rates)}


def against(tasks, arm, plain):
    "Loss at a finder's rates minus loss at a plain one: each answer meets a recorded curve of its own. A refusal counts as 2e-3."
    answers, found = recorded('lr_finder'), {}
    for name, task in tasks.items():
        mine = answers[(answers.arm == arm) & (answers.task == task)].set_index('seed').rate
        if not len(mine) and arm not in {*answers[answers.task == task].arm}: continue # not run there
        rates = mine.reindex(FINDERS).fillna(2e-3)
        found[name] = differences(at_rates(task, rates), at_rates(task, [plain]*len(rates)), unit='nats')
    return found


def too_high():
    "Validation loss at a rate near 2e-3 minus that at 0.1."
    for name, task in HEADS.items(): yield name, differences(at_rates(task, [2e-3]*9), at_rates(task, [.1]*9), unit='nats')


def rate_claims():
    where, later = '[02, section 5](../../nbs/02_lr_finder.ipynb)', '[02, section 7](../../nbs/02_lr_finder.ipynb)'
    yield Claim('A rate of 0.1 ends at a higher loss than 2e-3 (new head)', 'chapter', '[02, section 1](../../nbs/02_lr_finder.ipynb)', dict(too_high()))
    for arm, who, text in (('fastai: minimum', OURS_OF, 'The minimum divided by ten'), ('ours: last_fall', OURS_OF, 'The last point of a clear fall'),
                           ('fastai: valley', OURS_OF, "fastai's valley")):
        yield Claim(f'{text} is a better rate than a plain 2e-3 (new head)', who, where, against(HEADS, arm, 2e-3))
        yield Claim(f'{text} is a better rate than a plain 2e-3 (unfrozen from the start, 48 px)', who, where, against(UNFROZEN, arm, 2e-3))
    for plain in (1e-3, 2e-3, 3e-3):
        yield Claim(f'find_lr (tuned on these very tasks) is a better rate than a plain {plain:g} (new head)', 'ours', where, against(HEADS, 'ours: best', plain))
    yield Claim('find_lr (tuned on these very tasks) is a better rate than a plain 2e-3 (unfrozen from the start, 48 px)', 'ours', where, against(UNFROZEN, 'ours: best', 2e-3))
    yield Claim('find_lr (tuned on these very tasks) is a better rate than a plain 2e-3 (SGD)', 'ours', where, against(SGD, 'ours: best', 2e-3))
    for arm, text, who in (('race: race', 'A race', 'ours'), ('ours: best', 'find_lr', 'ours'), ('fastai: valley', "fastai's valley", OURS_OF)):
        for plain in (2e-3, 3e-3):
            yield Claim(f'{text} names a better rate than a plain {plain:g} (everything unfrozen after a linear probe, 96 px, slice(r/10, r))', who, later, against(PROBED, arm, plain))


# ------------------------------------------------------------------ 03
CHANGES = (('A trained head to start from', OURS_OF, 'start', 'trained'), ('A linear head on features of length 1', 'ours', 'head', 'linear'),
           ("Ten times fine_tune's rate for the body", 'ours', 'rate', 'ten times'), ('Batch-norm held (statistics and weights)', 'ours', 'batchnorm', 'held'))
FIRST = dict(head='fastai', start='random', rate='low', batchnorm='moving')


def fine_tuning_claims():
    arc, where, plan = whole('finetune_arc'), '[03, section {}](../../nbs/03_finetune.ipynb)', planned(10, 5)
    ratio = arc[arc['set'] == 'paper pets'].groupby('arm').error.mean()
    yield Claim("The recipe makes at most half of fine_tune(3)'s errors on paper pets", 'ours', where.format(8),
                note=f'**{"holds" if ratio["recipe"] <= ratio["fine_tune"]/2 else "does not hold"}**: {ratio["recipe"]/ratio["fine_tune"]:.2f} of them')
    for text, who, section, treatment, baseline, more in (
            ('The recipe (probe, then all layers; its rates come from a first look) beats fine_tune(3) as it is', 'ours', 1, 'recipe', 'fine_tune', {}),
            ('The recipe beats fine_tune(3) with batch-norm held', 'ours', 8, 'recipe', 'fine_tune, batch-norm held', {}),
            ('The linear probe alone is no worse than fine_tune(3) (margin 2 points)', 'ours', 8, 'linear probe', 'fine_tune', dict(margin=2)),
            ("The linear probe beats fastai's head, both on the frozen body", 'ours', 6, 'linear probe', 'head on features', {}),
            ('Unfreezing pays: a trained head, then four epochs of everything at slice(1e-5, 1e-3), batch-norm held, beats the head alone', OURS_OF, 8, 'features, then unfrozen', 'head on features', {}),
            ('Unfreezing pays: the recipe beats its own probe', OURS_OF, 6, 'recipe', 'linear probe', {}),
            ('fine_tune(3) beats a head trained for twenty epochs on the frozen body', OURS_OF, 2, 'fine_tune', 'head on features', {}),
            ('fine_tune(3) is better with batch-norm held (statistics and weights)', 'ours', 5, 'fine_tune, batch-norm held', 'fine_tune', {})):
        yield Claim(text, who, where.format(section), on_sets(arc, treatment, baseline, **more), plan=plan)
    yield from suspects(arc, where.format(5))
    runs = pd.concat([arc[arc.arm == 'recipe'], whole('finetune_rates')])
    best = min(('one rate of 0.003', 'one rate of 0.001'), key=runs[runs['set'] == 'paper pets'].groupby('arm').error.mean().get)
    yield Claim(f'A slice beats one rate for all layers, 0.003 and 0.001 alike (the better of them: {best.split()[-1]}; in the recipe)', OURS_OF, where.format(6), on_sets(runs, 'recipe', best))
    yield from epoch_claims(where.format(7))
    yield from statistics_claims(where.format(5))


def suspects(arc, where):
    "One change at a time from the cell that is nearest to fine_tune, all four, and each taken back; the chapter's own claim about the first two steps."
    grid, plan = recorded('finetune_factorial').dropna(subset=['head']), planned(10)
    grid = grid[(grid.rate != 'recipe') & (grid['set'] == 'paper pets')]
    def errors(**cell): return grid[(grid[list(cell)] == list(cell.values())).all(axis=1)].set_index('seed').error
    def pair(new, old):
        both = new.index.intersection(old.index)
        return {'paper pets': differences(new[both], old[both])}
    together = FIRST | {factor: new for *_, factor, new in CHANGES}
    for text, who, factor, new in CHANGES:
        yield Claim(f'{text}: changed alone, from near fine_tune, lowers the error', who, where, pair(errors(**FIRST | {factor: new}), errors(**FIRST)), plan=plan)
    yield Claim('All four together lower it', 'ours', where, pair(errors(**together), errors(**FIRST)), plan=plan)
    for text, who, factor, new in CHANGES:
        yield Claim(f'{text}: taken back from all four, the error rises', who, where, pair(errors(**together), errors(**together | {factor: FIRST[factor]})), plan=plan)
    head = arc[(arc.arm == 'head on features') & (arc['set'] == 'paper pets')].set_index('seed').error
    yield Claim('Unfreezing pays as the chapter does it: a trained head, then four epochs of everything at slice(1e-5, 1e-3), batch-norm training, beats the head alone',
                'chapter', where, pair(errors(**FIRST | dict(start='trained')), head), plan=plan)


def epoch_claims(where):
    runs, plan = recorded('finetune_epochs'), planned(10)
    watched = runs[runs.arm == 'recipe, 8 epochs'].set_index('seed')
    at = lambda epochs: pd.Series({s: watched.test_wrong[s][int(e) - 1]/watched.total[s] for s, e in epochs.items()})
    lowest = watched.valid_losses.map(lambda v: int(np.argmin(v)) + 1)
    later = lowest < 8 # in the other seeds nothing came after it
    again = runs[runs.arm == 'recipe, 2 epochs'].set_index('seed').error
    both = watched.index.intersection(again.index)
    recipe = whole('finetune_arc').query("arm == 'recipe' and set == 'paper pets'").set_index('seed').error
    four = watched.index.intersection(recipe.index)
    stops = ', '.join(str(int(e)) for e in sorted(watched.stopped))
    for text, who, better, worse in (
            (f'The whole cycle of 8 epochs beats one stopped at the first rise of the validation loss (after {stops} epochs)', 'chapter', watched.error, at(watched.stopped)),
            ('The test error goes on falling after the validation loss was lowest (seeds in which something came after)', 'chapter', watched.error[later], at(lowest)[later]),
            ('A short whole cycle (2 epochs) beats a long one stopped early', 'chapter', again[both], at(watched.stopped)[both]),
            ('A whole cycle of 4 epochs beats the first 4 of 8 (thought of after the runs)', OURS_OF, recipe[four], at(pd.Series(4, four)))):
        yield Claim(text, who, where, {'paper pets': differences(better, worse)} if len(better) else {}, plan=plan)


def statistics_claims(where):
    still, plan = recorded('finetune_statistics'), planned(10)
    for arm, text in (('rate 0, fastai head', "fastai's head"), ('rate 0, linear head', 'a linear head')):
        g = still[still.arm == arm].set_index('seed')
        if len(g): yield Claim(f'One epoch at rate 0 spoils {text}: batch-norm\'s statistics alone raise its error', 'ours', where,
                               {'paper pets': differences(g.wrong_after.str[0]/g.total, g.wrong_after.str[5]/g.total)}, plan=plan)
    bodies = recorded('finetune_bodies')
    for body in ('lite0', 'lite1', 'lite2', 'resnet10t'):
        found = {}
        for of in SETS:
            g = bodies[(bodies.arm == body) & (bodies['set'] == of)].set_index('seed')
            if len(g): found[of] = differences(g.error, g.wrong_moved/g.total, redivided=redivided(of))
        yield Claim(f'The same after a linear probe, with the body {body}', 'ours', where, found, plan=planned(5, 5))


# ------------------------------------------------------------------ 04
def deeper_claims():
    grown, where = recorded('deeper_grow'), '[04, section {}](../../nbs/04_deeper.ipynb)'
    for text, who, arm, baseline in (
            ('At equal processor time, deeper is better: lite1 beats lite0 in 8 seconds (96 px)', OURS_OF, 'lite1, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('At equal processor time, deeper and wider is better: lite2 beats lite0 in 8 seconds (96 px)', OURS_OF, 'lite2, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('The same in 24 seconds', OURS_OF, 'lite2, 96 px, 24 s', 'lite0, 96 px, 24 s'),
            ('128 px beat 96 px in 8 seconds', 'ours', 'lite0, 128 px, 8 s', 'lite0, 96 px, 8 s'),
            ('96 px beat 64 px in 8 seconds', 'ours', 'lite0, 96 px, 8 s', 'lite0, 64 px, 8 s'),
            ('Pictures that grow from 64 to 96 px beat 96 px throughout (8 seconds)', 'ours', 'lite0, 64 then 96 px, 8 s', 'lite0, 96 px, 8 s')):
        yield Claim(text, who, where.format(7), {'paper pets': differences(arm, baseline, grown, 'error')}, plan=planned(10))
    runs, photos = recorded('deeper'), recorded('deeper_photos')
    fixed, plan = ' (heads on 64 numbers a picture; one set of pictures)', dict(planned(20), **{'Oxford pets': 10})
    by_heart = runs.pivot(index='seed', columns='arm', values='memorised')
    yield Claim('The large head repeats more of the wrong labels than the small one' + fixed, 'chapter', where.format(4),
                {'paper pets': differences(by_heart['small, many'], by_heart['large, many'])}, plan=plan)
    for text, who, arm, baseline in (('A small head makes fewer errors than a large one where a tenth of the labels is wrong', OURS_OF, 'small, many', 'large, many'),
                                     ('Dropout lowers the error of the large head', OURS_OF, 'large, many: dropout', 'large, many'),
                                     ('Weight decay lowers it', OURS_OF, 'large, many: weight decay', 'large, many'),
                                     ('Augmentation lowers it', OURS_OF, 'large, many: augmentation', 'large, many'),
                                     ('All three at full strength raise it', 'ours', 'large, many', 'large, many: all three')):
        found = {'paper pets': differences(arm, baseline, runs, 'test_error')}
        if {arm, baseline} <= {*photos.arm}: found['Oxford pets'] = differences(arm, baseline, photos, 'error')
        yield Claim(text + fixed, who, where.format(4), found, plan=plan)
    precise, where, plan = recorded('precision'), where.format(6), planned(10)
    yield Claim('Half precision (bfloat16) is no worse (margin 2 points; 48 px, batches of 8, a short training)', 'chapter', where,
                {'paper pets': differences('bfloat16', 'float32', precise, 'error', margin=2)}, plan=plan)
    yield Claim('Half precision is quicker on a CPU without units for it', 'ours', where,
                {'paper pets': differences('bfloat16', 'float32', precise, 'seconds', unit='s')}, plan=plan)
    yield Claim('Half precision is quicker on a GPU that is built for it', 'chapter', where, note='not measured')
    yield Claim('Half precision takes less memory for activations', 'chapter', where,
                {'paper pets': differences('bfloat16', 'float32', precise, 'activations_MB', unit='MB')})


INTRO = """# Every claim, and whether it holds here

Made by `python bench/claims.py` from the recorded runs in `ch5clf/runs`; edit neither by hand. *Who*: the chapter of the book that this
course follows, somebody's notes on it, or ours; "chapter, our comparison" is a rule of the chapter that we put against a rival of our
own. A cell holds the mean difference between the claim's arm and the other one, its 95 % interval (Student's t over seeds), wins/ties/losses
of the claim's arm, and the number of pairs, with the number that its script plans where that is not reached. Errors are in percentage
points; below zero speaks for the claim.

A claim *holds* on a set where the interval lies below zero (for "no worse": below the margin), *does not hold* where it lies above, and is
*not decided* where it reaches across. Fewer than five pairs decide nothing. *So far*: more runs are planned, and a verdict may still change.

- Paper pets are drawn anew for each seed, unless a row says "one set of pictures". Photographs are not: each seed divides the same 1,110
  pets or 800 clothes anew. Their intervals are widened for that (Nadeau and Bengio, 2003), and still speak of these photographs.
- Finders are read off recorded curves of loss against rate, on one set of pictures for each task. Each of five answers meets a curve of its
  own, so that the interval holds the chance of both.
- {n} differences stand here, and nothing is corrected for their number. Where nothing is true, about one in twenty is decided by chance. Trust
  those with few pairs, and with a bound near zero, least.
- A verdict is about these sets and this body (EfficientNet-Lite0 at 128 pixels unless the row says otherwise), not about all.
"""
CHAPTERS = {'Data': data_claims, 'Loss': loss_claims, 'Rates': rate_claims, 'Fine-tuning': fine_tuning_claims, 'Deeper': deeper_claims}


def row(claim):
    unit = ''.join({f', in {d.measure}' for d in claim.found.values() if d.unit != '%'}) # the same on all sets
    cells = [cell(claim.found[n], claim.plan.get(n, 0)) if n in claim.found else '' for n in SETS]
    cells.append('; '.join(f'{n}: {cell(d)}' for n, d in claim.found.items() if n not in SETS))
    return f'| {" | ".join([claim.text + unit, claim.who, claim.where, *cells, f"**{claim.verdict}**" if claim.found else claim.note or "not measured"])} |'


def page():
    "The whole page, as Markdown."
    told = {title: [*claims()] for title, claims in CHAPTERS.items()}
    lines = [INTRO.format(n=sum(len(c.found) for of in told.values() for c in of))]
    for title, of in told.items():
        lines += [f'## {title}', '', f'| claim | who | tried in | {" | ".join(SETS)} | elsewhere | verdict |', '| --- | --- | --- |' + ' --- |'*5, *map(row, of), '']
    return '\n'.join(lines)


FRONT, MARKS = ROOT/'nbs'/'index.ipynb', ('<!-- verdicts: made by bench/claims.py -->', '<!-- end of verdicts -->')


def verdicts():
    "The verdicts alone, as Markdown for the front page."
    claims = [c for of in CHAPTERS.values() for c in of()]
    rows = [f'| {c.text} | {c.where.replace("../../nbs/", "")} | {f"**{c.verdict}**" if c.found else c.note} |' for c in claims]
    return '\n'.join([MARKS[0], '<details>', f'<summary>All {len(claims)} claims and their verdicts</summary>', '',
                      '| claim | tried in | verdict |', '| --- | --- | --- |', *rows, '', '</details>', MARKS[1]])


def front():
    "nbs/index.ipynb with the verdicts of these runs, as text."
    book = json.loads(FRONT.read_text(encoding='utf-8'))
    cell, = (c for c in book['cells'] if MARKS[0] in ''.join(c['source']))
    source = ''.join(cell['source'])
    before, after = source.split(MARKS[0])[0], source.split(MARKS[1])[1]
    cell['source'] = (before + verdicts() + after).splitlines(keepends=True)
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + '\n'


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('--check', action='store_true')
    made = {PAGE: page(), FRONT: front()}
    if ask.parse_args().check: sys.exit(any(text != file.read_text(encoding='utf-8') for file, text in made.items()))
    for file, text in made.items(): file.write_text(text, encoding='utf-8', newline='\n')
    print(made[PAGE])
    subprocess.run([sys.executable, ROOT/'.ci'/'readme.py'], check=True)


if __name__ == '__main__': main()

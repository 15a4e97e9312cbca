"""Every claim with its verdict, from the recorded runs: `python bench/claims.py` writes bench/results/claims.md.

The verdicts alone also go into nbs/index.ipynb, and so into README.md.

A claim says that an arm is better than another. Its row holds, for each set, the paired differences of the two arms as the chapters
compute them (`differences` on `recorded` runs): mean, 95 % interval (bootstrap over seeds), wins/ties/losses of the claim's arm, and
the number of pairs. The verdict follows from these alone: on a set the claim holds where the interval lies on its side of zero (or, for
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
    note: str = ''

    def on(self, name):
        "The verdict on one set."
        d, line = self.found[name], self.found[name].margin or 0
        if d.n < 5: return FEW
        return HOLDS if d.high < line else FAILS if d.low > line else UNDECIDED

    @property
    def verdict(self):
        "One word where all sets agree, else what each says."
        said = {name: self.on(name) for name in self.found}
        if len({*said.values()}) == 1: return next(iter(said.values()))
        return '; '.join(f'{word} ({", ".join(n for n in said if said[n] == word)})' for word in (HOLDS, FAILS, UNDECIDED, FEW) if word in said.values())


def cell(d):
    "Differences in a cell of the table."
    say = (lambda x: f'{x:+.1f}') if d.unit == '%' else (lambda x: f'{x:+.2g}')
    if d.low == d.high: return f'{say(d.mean)}, the same for each of {d.n} seeds'.replace('-', '−')
    spread = f' ({say(d.low)} to {say(d.high)})' if d.n > 1 else ''
    return f'{say(d.mean)}{spread}; {d.wins}/{d.ties}/{d.losses}, n = {d.n}'.replace('-', '−')


def on_sets(runs, treatment, baseline, sets=SETS, **kwargs):
    "Differences on each set of which both arms were run; seeds that only one arm has are left out."
    found = {}
    for name in sets:
        here = runs[runs['set'] == name]
        seeds = [set(here[here.arm == arm].seed) for arm in (treatment, baseline)]
        here = here[here.arm.isin((treatment, baseline)) & here.seed.isin(seeds[0] & seeds[1])]
        if len(here): found[name] = differences(treatment, baseline, here[['arm', 'seed', 'error']], value='error', **kwargs)
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


# ------------------------------------------------------------------ 00
def data_claims():
    base = recorded('baseline')
    if 'alike' in base:
        errors = base[base.arm == 'paper pets'].dropna(subset=['alike']).set_index('seed')
        yield Claim('Look-alikes dominate the confusion: a wrong answer names the look-alike more often than 1 in 11', 'chapter',
                    '[00, section 4](../../nbs/00_data.ipynb)', {'paper pets': differences(1/11 + 0*errors.wrong, errors.alike/errors.wrong)})
    where = '[00, section 5](../../nbs/00_data.ipynb)'
    runs = by_set('presize')
    runs = runs[runs.groupby(['set', 'seed']).arm.transform('nunique') == 3] # whole triples only, as in the chapter
    yield Claim('Presizing, more pixels until the last step, lowers the error', 'chapter', where, on_sets(runs, 'fastai presizing', 'no margin'))
    yield Claim("`pet_dls` (one interpolation, real edges) is no worse than fastai's presizing (margin 1 point)", 'ours', where,
                on_sets(runs, 'one interpolation', 'fastai presizing', margin=1))
    runs, where = by_set('cleaning'), '[00, section 6](../../nbs/00_data.ipynb)'
    yield Claim('Perfect labels lower the test error of a short training (8 % had been wrong)', OURS_OF, where,
                {'paper pets': differences('perfect', 'as found', recorded('riddle'), 'error')})
    for kind in ('uniform', 'look-alike'):
        looked = runs[runs.arm == f'{kind} 8%: logistic: cleaned']
        found = {n: differences(g.chance.values, g.precision.values) for n, g in looked.groupby('set')}
        yield Claim(f'Train before you clean: a first model finds wrong labels better than chance (8 % wrong, {kind})', 'chapter', where, found)
    for kind in ('uniform', 'look-alike'):
        for share in (8, 20, 40):
            arm = f'{kind} {share}%: logistic: '
            yield Claim(f'Cleaning (who is always right looks at twice as many as are wrong) lowers the test error ({share} % wrong, {kind})', OURS_OF, where, on_sets(runs, arm + 'cleaned', arm + 'as found'))


# ------------------------------------------------------------------ 01
def loss_claims():
    where, aside = '[01, section 7](../../nbs/01_loss.ipynb)', '[an aside](../../nbs/asides/smoother_training.ipynb)'
    yield Claim('The gradient of cross-entropy is softmax minus target', 'chapter', where, note='**holds**: an identity, checked there to rounding')
    yield Claim('It is linear', 'notes', where, note='in the probabilities it is, in the logits it is not')
    yield Claim('So training is smoother than with squared error', 'chapter', aside,
                note='at one rate for both no; at rates at which both learn yes (five seeds of one small network, measured there anew)')


# ------------------------------------------------------------------ 02
HEADS = {'paper pets': 'paper pets frozen', 'Oxford pets': 'pets head', 'clothing': 'clothing head'}
UNFROZEN = {'paper pets': 'paper pets unfrozen', 'clothing': 'clothing unfrozen'}


def regrets(tasks, arm, plain):
    "Regret at a finder's rate minus regret at a plain one, read off the recorded valleys as chapter 02 does; a refusal counts as 2e-3."
    valleys = recorded('lr_sweep').groupby(['arm', 'rate']).loss.mean()
    answers = recorded('lr_finder')
    found = {}
    for name, task in tasks.items():
        loss = lambda rate: np.interp(np.log(rate), np.log(valleys[task].index), valleys[task])
        rates = answers[(answers.arm == arm) & (answers.task == task)].set_index('seed').rate.reindex(range(11, 16)).fillna(2e-3)
        found[name] = differences({s: float(loss(r)) for s, r in rates.items()}, {s: float(loss(plain)) for s in rates.index}, unit='nats')
    return found


def too_high():
    "Validation loss at a rate near 2e-3 minus that at 0.1."
    sweep = recorded('lr_sweep')
    for name, task in HEADS.items():
        table = sweep[sweep.arm == task].pivot(index='seed', columns='rate', values='loss')
        at = lambda rate: table[min(table.columns, key=lambda r: abs(np.log(r/rate)))]
        yield name, differences(at(2e-3), at(.1), unit='nats')


def rate_claims():
    where = '[02, section 5](../../nbs/02_lr_finder.ipynb)'
    yield Claim('A rate of 0.1 ends at a higher loss than 2e-3 (new head)', 'chapter', '[02, section 1](../../nbs/02_lr_finder.ipynb)', dict(too_high()))
    for arm, who, text in (('fastai: minimum', OURS_OF, 'The minimum divided by ten'), ('fastai: valley', OURS_OF, "fastai's valley"),
                           ('ours: best', 'ours', 'find_lr (tuned on such tasks)')):
        yield Claim(f'{text} is a better rate than a plain 2e-3 (new head)', who, where, regrets(HEADS, arm, 2e-3))
        yield Claim(f'{text} is a better rate than a plain 2e-3 (unfrozen from the start)', who, where, regrets(UNFROZEN, arm, 2e-3))


# ------------------------------------------------------------------ 03
FACTORS = (('A trained head first, then all layers, beats all layers at once from a random head', OURS_OF, 'start', 'trained', 'random'),
           ("A linear head on features of length 1 beats fastai's head", 'ours', 'head', 'linear', 'fastai'),
           ("Ten times fine_tune's rate for the body is better", 'ours', 'rate', 'ten times', 'low'),
           ('Batch-norm held (statistics and weights) beats batch-norm that trains', 'ours', 'batchnorm', 'held', 'moving'))


def fine_tuning_claims():
    arc, grid, where = whole('finetune_arc'), recorded('finetune_factorial').dropna(subset=['head']), '[03, section {}](../../nbs/03_finetune.ipynb)'
    for text, who, section, treatment, baseline, more in (
            ('The recipe (probe, then all layers) beats fine_tune(3)', 'ours', 1, 'recipe', 'fine_tune', {}),
            ('The recipe beats fine_tune(3) with batch-norm held', 'ours', 8, 'recipe', 'fine_tune, batch-norm held', {}),
            ('The linear probe alone is no worse than fine_tune(3) (margin 2 points)', 'ours', 8, 'linear probe', 'fine_tune', dict(margin=2)),
            ("The linear probe beats fastai's head, both on the frozen body", 'ours', 6, 'linear probe', 'head on features', {}),
            ('Unfreezing pays: a trained head, then everything at slice(1e-5, 1e-3), beats the head alone', 'chapter', 8, 'features, then unfrozen', 'head on features', {}),
            ('Unfreezing pays: the recipe beats its own probe', OURS_OF, 6, 'recipe', 'linear probe', {}),
            ('fine_tune(3) beats a head trained for twenty epochs on the frozen body', OURS_OF, 2, 'fine_tune', 'head on features', {}),
            ('fine_tune(3) is better with batch-norm held (statistics and weights)', 'ours', 5, 'fine_tune, batch-norm held', 'fine_tune', {})):
        yield Claim(text, who, where.format(section), on_sets(arc, treatment, baseline, **more))
    cells = grid[grid.rate != 'recipe']
    complete = cells.groupby('seed').arm.nunique()
    cells = cells[cells.seed.isin(complete[complete == 16].index)]
    for text, who, factor, new, old in FACTORS:
        means = cells.groupby(['seed', factor]).error.mean().unstack()
        yield Claim(f'{text} (mean over eight pairs of cells)', who, where.format(5), {'paper pets': differences(means[new], means[old])})
    runs = pd.concat([arc[arc.arm == 'recipe'], whole('finetune_rates')])
    for rate in ('0.003', '0.001'):
        yield Claim(f'A slice beats one rate of {rate} for all layers (in the recipe)', OURS_OF, where.format(6),
                    on_sets(runs, 'recipe', f'one rate of {rate}'))
    yield from epoch_claims(where.format(7))


def epoch_claims(where):
    runs = recorded('finetune_epochs')
    watched = runs[runs.arm == 'recipe, 8 epochs'].set_index('seed')
    at = lambda epochs: pd.Series({s: watched.test_wrong[s][int(e) - 1]/watched.total[s] for s, e in epochs.items()})
    lowest = watched.valid_losses.map(lambda v: int(np.argmin(v)) + 1)
    again = runs[runs.arm == 'recipe, 2 epochs'].set_index('seed').error
    both = watched.index.intersection(again.index)
    for text, better, worse in (
            ('The whole cycle beats one stopped at the first rise of the validation loss', watched.error, at(watched.stopped)),
            ('The test error goes on falling after the validation loss was lowest', watched.error, at(lowest)),
            ('A short whole cycle (2 epochs) beats a long one stopped early', again[both], at(watched.stopped)[both])):
        yield Claim(text, 'chapter', where, {'paper pets': differences(better, worse)})


# ------------------------------------------------------------------ 04
def deeper_claims():
    grown, where = recorded('deeper_grow'), '[04, section {}](../../nbs/04_deeper.ipynb)'
    for text, who, arm, baseline in (
            ('Deeper is better: lite1 beats lite0 in the same 8 seconds', OURS_OF, 'lite1, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('Deeper is better: lite2 (deeper and wider) beats lite0 in the same 8 seconds', OURS_OF, 'lite2, 96 px, 8 s', 'lite0, 96 px, 8 s'),
            ('Deeper is better: lite2 (deeper and wider) beats lite0 in the same 24 seconds', OURS_OF, 'lite2, 96 px, 24 s', 'lite0, 96 px, 24 s'),
            ('Pictures that grow from 64 to 96 px beat 96 px throughout', 'ours', 'lite0, 64 then 96 px, 8 s', 'lite0, 96 px, 8 s')):
        yield Claim(text, who, where.format(7), {'paper pets': differences(arm, baseline, grown, 'error')})
    runs = recorded('deeper')
    for text, arm, baseline in (('Fewer parameters: a small head beats a large one where a tenth of the labels is wrong', 'small, many', 'large, many'),
                                ('Dropout lowers the error of the large head', 'large, many: dropout', 'large, many'),
                                ('Weight decay lowers it', 'large, many: weight decay', 'large, many'),
                                ('Augmentation lowers it', 'large, many: augmentation', 'large, many')):
        found = {'paper pets': differences(arm, baseline, runs, 'test_error')}
        photos = recorded('deeper_photos')
        if {arm, baseline} <= {*photos.arm}: found['Oxford pets'] = differences(arm, baseline, photos, 'error')
        yield Claim(f'{text} (one set of pictures for all seeds)', OURS_OF, where.format(4), found)
    precise = recorded('precision')
    yield Claim('Half precision (bfloat16) is no worse (margin 2 points)', 'chapter', where.format(6),
                {'paper pets': differences('bfloat16', 'float32', precise, 'error', margin=2)})
    yield Claim('Half precision is quicker on a CPU without units for it', 'ours', where.format(6),
                {'paper pets': differences('bfloat16', 'float32', precise, 'seconds', unit='s')})
    yield Claim('Half precision takes less memory for activations', 'chapter', where.format(6),
                {'paper pets': differences('bfloat16', 'float32', precise, 'activations_MB', unit='MB')})


INTRO = """# Every claim, and whether it holds here

Made by `python bench/claims.py` from the recorded runs in `ch5clf/runs`; edit neither by hand. *Who*: the chapter of the book that this
course follows, somebody's notes on it, or ours; "chapter, our comparison" is a rule of the chapter that we put against a rival of our
own. A cell holds the mean difference between the claim's arm and the other one, its 95 % interval over seeds, wins/ties/losses of the
claim's arm, and the number of pairs. Errors are in percentage points; below zero speaks for the claim. A claim *holds* on a set where the
interval lies below zero (for "no worse": below the margin), *does not hold* where it lies above, and is *not decided* where it reaches
across. Fewer than five pairs decide nothing; our plan is ten on paper pets and five on photographs, and n says how many there are. Finders are read off recorded curves of loss against rate, so their intervals are
about the finder's own spread. A verdict is about these sets and this body (EfficientNet-Lite0 at 128 pixels, unless the chapter says
otherwise), not about all.
"""
CHAPTERS = {'Data': data_claims, 'Loss': loss_claims, 'Rates': rate_claims, 'Fine-tuning': fine_tuning_claims, 'Deeper': deeper_claims}


def row(claim):
    unit = ''.join({f', in {d.measure}' for d in claim.found.values() if d.unit != '%'}) # the same on all sets
    cells = [cell(claim.found[n]) if n in claim.found else '' for n in SETS]
    return f'| {" | ".join([claim.text + unit, claim.who, claim.where, *cells, f"**{claim.verdict}**" if claim.found else claim.note or "not measured"])} |'


def page():
    "The whole page, as Markdown."
    lines = [INTRO]
    for title, claims in CHAPTERS.items():
        lines += [f'## {title}', '', f'| claim | who | tried in | {" | ".join(SETS)} | verdict |', '| --- | --- | --- |' + ' --- |'*4, *map(row, claims()), '']
    return '\n'.join(lines)


FRONT, MARKS = ROOT/'nbs'/'index.ipynb', ('<!-- verdicts: made by bench/claims.py -->', '<!-- end of verdicts -->')


def verdicts():
    "The verdicts alone, as Markdown for the front page."
    claims = [c for of in CHAPTERS.values() for c in of()]
    rows = [f'| {c.text} | {c.where.replace("../../nbs/", "")} | {f"**{c.verdict}**" if c.found else c.note} |' for c in claims]
    held = sum(bool(c.found) and c.verdict == HOLDS for c in claims)
    return '\n'.join([MARKS[0], '<details>', f'<summary>All {len(claims)} claims and their verdicts ({held} hold wherever they were tried)</summary>', '',
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

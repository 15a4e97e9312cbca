"""Record the data chapter's first training over many seeds: `python bench/baseline.py [PHOTOS]`.

Writes ch5clf/runs/baseline.json. PHOTOS is a folder that holds pets_dev/ and clothing_dev/ (real photos, not in this
repository). A run that is recorded already, with the same arm and seed, is not repeated: delete the file to begin anew.
"""
import json, sys
from pathlib import Path

from ch5clf.pretrained import lite0
from ch5clf.data import pet_dls
from ch5clf.lesson import record
from ch5clf.sample import paper_pets
from fastai.vision.all import error_rate, set_seed, vision_learner

OUT = Path(__file__).resolve().parents[1]/'ch5clf'/'runs'/'baseline.json'
ABOUT = 'vision_learner(dls, lite0).fine_tune(2), 128 px, batches of 32: error on the validation pictures. Paper pets: 144 of 720 pictures; Oxford pets: 37 breeds x 30 photos, and clothing: 10 classes x 80 photos, of each a random fifth, with another split for each seed.'


def one_run(path, seed):
    set_seed(seed)
    dls = pet_dls(path, seed=seed)
    learn = vision_learner(dls, lite0, metrics=error_rate)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(2)
    error = learn.recorder.values[-1][-1]
    return dict(error=error, wrong=round(error*len(dls.valid_ds)), total=len(dls.valid_ds))


def recorded_rows(): return json.loads(OUT.read_text(encoding='utf-8'))['rows'] if OUT.exists() else []


def main():
    sets = {'paper pets': (paper_pets(), 20)}
    if len(sys.argv) > 1:
        photos = Path(sys.argv[1])
        sets |= {'Oxford pets': (photos/'pets_dev'/'images', 3), 'clothing': (photos/'clothing_dev'/'images', 3)}
    for arm, (path, seeds) in reversed(sets.items()):
        for seed in range(1, seeds + 1):
            if any(r['arm'] == arm and r['seed'] == seed for r in recorded_rows()): continue
            row = dict(arm=arm, seed=seed, **one_run(path, seed))
            record(OUT, sorted([*recorded_rows(), row], key=lambda r: (list(sets).index(r['arm']) if r['arm'] in sets else 9, r['seed'])), ABOUT)
            print(row, flush=True)


if __name__ == '__main__': main()

"""Record the data chapter's first training over many seeds: `python bench/baseline.py [PHOTOS]`.

Writes ch5clf/runs/baseline.json. PHOTOS is a folder that holds pets_dev/ and clothing_dev/ (real photos, not in this
repository); without it, their rows of the last recording are kept. Runs already recorded with the same arm and seed are not repeated.
"""
import json, sys, time
from pathlib import Path

from ch5clf.pretrained import lite0
from ch5clf.data import pet_dls
from ch5clf.lesson import record
from ch5clf.sample import paper_pets
from fastai.vision.all import error_rate, set_seed, vision_learner

OUT = Path(__file__).resolve().parents[1]/'ch5clf'/'runs'/'baseline.json'
ABOUT = 'vision_learner(dls, lite0).fine_tune(epochs), 128 px, batches of 32: error on the validation pictures. Paper pets: 2 unfrozen epochs, 144 pictures; pets_dev (37 breeds x 30) and clothing_dev (10 classes x 80): 3 unfrozen epochs, a random fifth.'


def one_run(path, epochs, seed):
    set_seed(seed)
    dls = pet_dls(path)
    learn = vision_learner(dls, lite0, metrics=error_rate)
    start = time.time()
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(epochs)
    error = learn.recorder.values[-1][-1]
    return dict(error=error, wrong=round(error*len(dls.valid_ds)), total=len(dls.valid_ds), seconds=round(time.time() - start, 1))


def main():
    sets = {'paper pets': (paper_pets(), 2, 20)}
    if len(sys.argv) > 1:
        photos = Path(sys.argv[1])
        sets |= {name: (photos/name/'images', 3, 5) for name in ('clothing_dev', 'pets_dev')}
    rows = json.loads(OUT.read_text(encoding='utf-8'))['rows'] if OUT.exists() else []
    for arm, (path, epochs, seeds) in sets.items():
        for seed in range(1, seeds + 1):
            if any(r['arm'] == arm and r['seed'] == seed for r in rows): continue
            rows.append(dict(arm=arm, seed=seed, **one_run(path, epochs, seed)))
            record(OUT, rows, ABOUT)
            print(rows[-1], flush=True)


if __name__ == '__main__': main()

"""Make ch5clf/runs/loss_batch.json, the real activations that the loss chapter opens with.

    python bench/loss_batch.py      about three minutes on two cores

Two linear heads on the features of a frozen lite0 (ImageNet weights, 224 px, whole picture squeezed to a square):
one trained with cross_entropy on the training pictures of paper pets, one with multilabel_loss on scenes of no, one or two pets.
Stored: 64 validation pictures of the first; and both heads on two scenes that neither saw.
"""
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.lesson import record  # noqa: E402
from ch5clf.loss import cross_entropy, multilabel_loss  # noqa: E402
from ch5clf.pretrained import lite0  # noqa: E402
from ch5clf.sample import BREEDS, draw, paper_pets  # noqa: E402

SEED, SIZE = 42, 224
NAMES = [b.name for b in BREEDS]


def features(pictures):
    "(n, 1280): lite0's pooled features, the body in eval mode and frozen."
    body = lite0().eval()
    out = []
    with torch.no_grad():
        for i in range(0, len(pictures), 32):
            pixels = np.stack([np.asarray(p.convert('RGB').resize((SIZE, SIZE), Image.BICUBIC)) for p in pictures[i:i+32]])
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            out.append(body.global_pool(body.forward_features(x)).flatten(1))
    return torch.cat(out)


def train_head(x, y, loss, epochs):
    torch.manual_seed(SEED)
    head = torch.nn.Linear(x.shape[1], len(NAMES))
    opt = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=.01)
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(64):
            opt.zero_grad()
            loss(head(x[i]), y[i]).backward()
            opt.step()
    return head


def scene_labels(rng):
    "No, one or two different breeds."
    return rng.sample(NAMES, rng.choice([0, 1, 1, 2, 2, 2]))


def present(labels): return torch.tensor([[float(n in breeds) for n in NAMES] for breeds in labels])


def rows_of(logits, arm, seeds, pictures, labels):
    return [dict(arm=arm, seed=s, picture=p, label=l, **{n: round(v, 4) for n, v in zip(NAMES, row)})
            for row, s, p, l in zip(logits.tolist(), seeds, pictures, labels)]


def main():
    path = paper_pets()
    table = pd.read_csv(path / 'labels.csv')
    table['class'] = table['label'].map(NAMES.index)
    file = {s: table[table['split'] == s] for s in ('train', 'valid')}
    x = {s: features([Image.open(path / 'images' / n) for n in t['name']]) for s, t in file.items()}
    y = {s: torch.tensor(t['class'].to_numpy()) for s, t in file.items()}
    one = train_head(x['train'], y['train'], cross_entropy, epochs=40)
    with torch.no_grad(): valid = one(x['valid'])
    wrong = int((valid.argmax(1) != y['valid']).sum())
    pick = torch.randperm(len(valid), generator=torch.Generator().manual_seed(SEED))[:64]
    batch = file['valid'].iloc[pick.tolist()]
    rows = rows_of(valid[pick], 'validation batch', [SEED] * 64, batch['name'], batch['label'])

    rng = random.Random(SEED)
    labels = [scene_labels(rng) for _ in range(900)]
    scenes = features([draw(breeds, 10_000 + i) for i, breeds in enumerate(labels)])
    seen, unseen = slice(0, 800), slice(800, None)
    each = train_head(scenes[seen], present(labels[seen]), multilabel_loss, epochs=150)
    shown = [('two pets', ['Reed_tabby', 'quilt_terrier'], 1), ('no pet', [], 2)]
    f = features([draw(breeds, seed) for _, breeds, seed in shown])
    with torch.no_grad():
        said = (each(scenes[unseen]) > 0) == present(labels[unseen]).bool()
        for arm, head in (('one softmax', one), ('a sigmoid each', each)):
            rows += rows_of(head(f), arm, [s for *_, s in shown], [p for p, *_ in shown], [', '.join(b) for _, b, _ in shown])

    about = (f"Logits of linear heads on features of a frozen lite0, {SIZE} px. 'validation batch': 64 of the {len(valid)} validation pictures of "
             f"paper_pets(), head trained 40 epochs with cross_entropy ({wrong} of {len(valid)} wrong). 'one softmax': the same head on two drawn scenes. "
             f"'a sigmoid each': a head trained 150 epochs with multilabel_loss on 800 scenes of no, one or two pets, on the same two "
             f"(on 100 other scenes {int(said.sum())} of {said.numel()} yes-or-no answers right, {int(said.all(1).sum())} of 100 scenes wholly).")
    out = ROOT / 'ch5clf' / 'runs' / 'loss_batch.json'
    out.parent.mkdir(exist_ok=True)
    record(out, rows, about)
    print(about)


if __name__ == '__main__': main()

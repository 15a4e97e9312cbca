"""Make ch5clf/runs/loss_batch.json: what a head with a sigmoid for each breed says of pictures with two pets, and with none.

    python bench/loss_batch.py      about two minutes on two cores

A linear head on the features of a frozen lite0 (ImageNet weights, 224 px, whole picture squeezed to a square), trained with
multilabel_loss on drawn scenes of no, one or two paper pets. Stored: its logits for a scene of two pets, one of none, and a photograph
of a real cat (scikit-image's chelsea), which it never saw. Section 8 of 01_loss shows them beside the softmax of the reader's own model.
"""
import random
import sys
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.lesson import record  # noqa: E402
from ch5clf.loss import multilabel_loss  # noqa: E402
from ch5clf.pretrained import lite0  # noqa: E402
from ch5clf.sample import BREEDS, draw  # noqa: E402

SEED, SIZE, SEEN, OTHERS = 42, 224, 800, 100
NAMES = [b.name for b in BREEDS]
PAIR = ['Reed_tabby', 'quilt_terrier']


def features(pictures):
    "(n, 1280): lite0's pooled features, the body in eval mode and frozen."
    body, out = lite0().eval(), []
    with torch.no_grad():
        for i in range(0, len(pictures), 32):
            pixels = np.stack([np.asarray(p.convert('RGB').resize((SIZE, SIZE), Image.BICUBIC)) for p in pictures[i:i+32]])
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            out.append(body.global_pool(body.forward_features(x)).flatten(1))
    return torch.cat(out)


def train_head(x, y, epochs):
    torch.manual_seed(SEED)
    head = torch.nn.Linear(x.shape[1], len(NAMES))
    opt = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=.01)
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(64):
            opt.zero_grad()
            multilabel_loss(head(x[i]), y[i]).backward()
            opt.step()
    return head


def present(labels): return torch.tensor([[float(n in breeds) for n in NAMES] for breeds in labels])


def main():
    rng = random.Random(SEED)
    labels = [rng.sample(NAMES, rng.choice([0, 1, 1, 2, 2, 2])) for _ in range(SEEN + OTHERS)]
    x = features([draw(breeds, 10_000 + i) for i, breeds in enumerate(labels)])
    head = train_head(x[:SEEN], present(labels[:SEEN]), epochs=150)
    shown = [('two pets', PAIR, draw(PAIR, 1)), ('no pet', [], draw([], 2)), ('a real cat', [], Image.open(Path(skimage.__file__).parent/'data'/'chelsea.png'))]
    with torch.no_grad():
        said = (head(x[SEEN:]) > 0) == present(labels[SEEN:]).bool()
        logits = head(features([p for *_, p in shown])).tolist()
    rows = [dict(arm='a sigmoid each', seed=SEED, picture=name, label=', '.join(breeds), **{n: round(v, 4) for n, v in zip(NAMES, row)})
            for row, (name, breeds, _) in zip(logits, shown)]
    about = (f"Logits of a linear head on features of a frozen lite0, {SIZE} px, trained 150 epochs with multilabel_loss on {SEEN} scenes of "
             f"no, one or two paper pets (on {OTHERS} other scenes {int(said.sum())} of {said.numel()} yes-or-no answers right, "
             f"{int(said.all(1).sum())} of {OTHERS} scenes wholly): a scene of two pets, one of none, and a photograph of a real cat.")
    record(ROOT / 'ch5clf' / 'runs' / 'loss_batch.json', rows, about)
    print(about)
    for r in rows: print(r['picture'], {n: round(1/(1 + np.exp(-r[n])), 3) for n in NAMES})


if __name__ == '__main__': main()

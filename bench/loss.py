"""Time and memory of cross-entropy, forward and backward: ch5clf.loss (plain PyTorch, as chapter 01 derives it), naive code, PyTorch's own.

    python bench/loss.py            writes bench/results/loss.md and loss.json

No goal is set for ours: it is the short version that a reader could have written, and this says what that costs.

Calls are interleaved (one of each in turn). The fastest call of a round counts, since other work on the machine only adds time;
shown are medians over the rounds, and the range of the ratios. One thread. Memory is the highest sum of
live allocations that torch's profiler saw during one forward and backward, logits and target not counted.
"""
import json
import os
import platform
import sys
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # the profiler's chatter
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.loss import cross_entropy  # noqa: E402

ROUNDS, CALLS = 7, 40
CASES = [(256, 1000, {}), (64, 37, {}), (64, 12, {}), (256, 1000, {'label_smoothing': .1}), (256, 1000, {'target': 'probabilities'})]


def naive(x, y, **kw): return -(x.exp() / x.exp().sum(1, keepdim=True)).log()[range(len(y)), y].mean()
def log_sum_exp(x, y, **kw): return (x.logsumexp(1) - x.gather(1, y[:, None])[:, 0]).mean()


def backward(f, x, y, kw): return torch.autograd.grad(f(x, y, **kw), x)


def times(fs, x, y, kw):
    "Microseconds per call: for each round, a list of the fastest calls, one per function."
    for f in fs: backward(f, x, y, kw)
    rounds = []
    for _ in range(ROUNDS):
        took = [[] for _ in fs]
        for _ in range(CALLS):
            for f, t in zip(fs, took):
                start = perf_counter()
                backward(f, x, y, kw)
                t.append((perf_counter() - start) * 1e6)
        rounds.append([min(t) for t in took])
    return rounds


def peak(f, x, y, kw):
    "Highest live memory in bytes during one forward and backward."
    backward(f, x, y, kw)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        grad = backward(f, x, y, kw)
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]']
    live = highest = 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        live += e.nbytes()
        highest = max(highest, live)
    assert highest >= grad[0].untyped_storage().nbytes(), 'the profiler reported no allocations'
    return highest


def measure(items, classes, kw):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(items, classes, generator=g, requires_grad=True), torch.randint(0, classes, (items,), generator=g)
    options, kw = kw, {k: v for k, v in kw.items() if k != 'target'}
    if 'target' in options: y = torch.rand(items, classes, generator=g).softmax(1)
    fs = {'ours': cross_entropy, 'PyTorch': F.cross_entropy}
    if not options: fs |= {'naive chain': naive, 'logsumexp - gather': log_sum_exp}
    rounds = times(list(fs.values()), x, y, kw)
    column = dict(zip(fs, zip(*rounds)))
    return [dict(items=items, classes=classes, options=options, function=name, microseconds=median(t),
                 time_ratio=median(t) / median(column['PyTorch']),
                 time_ratio_range=[min(r := [a / b for a, b in zip(t, column['PyTorch'])]), max(r)],
                 peak_bytes=(m := peak(f, x, y, kw)), memory_ratio=m / peak(F.cross_entropy, x, y, kw))
            for (name, f), t in zip(fs.items(), column.values())]


def main():
    torch.set_num_threads(1)
    rows = [row for case in CASES for row in measure(*case)]
    made = dict(date=date.today().isoformat(), machine=f'{platform.machine()}, {torch.get_num_interop_threads()} cores, CPU',
                versions=dict(python=platform.python_version(), torch=torch.__version__),
                load=round(os.getloadavg()[0], 1) if hasattr(os, 'getloadavg') else None)
    about = f'forward and backward of cross-entropy, float32, one thread, the fastest call of each of {ROUNDS} rounds of {CALLS} interleaved calls; ratios to PyTorch\'s F.cross_entropy'
    out = ROOT / 'bench' / 'results'
    out.mkdir(exist_ok=True)
    (out / 'loss.json').write_text(json.dumps(dict(about=about, made=made, rows=rows), indent=1) + '\n', encoding='utf-8')
    lines = ['# Cross-entropy, forward and backward, on a CPU', '', f'{about}.', '',
             f"{made['date']}, {made['machine']}, torch {torch.__version__}, load average at the end {made['load']}.", '',
             '| items x classes | options | function | microseconds | time, against PyTorch (range over rounds) | peak memory, KiB | against PyTorch |',
             '| --- | --- | --- | --- | --- | --- | --- |']
    for r in rows:
        options = ', '.join(f'{k}={v}' for k, v in r['options'].items()) or '-'
        low, high = r['time_ratio_range']
        lines.append(f"| {r['items']} x {r['classes']} | {options} | {r['function']} | {r['microseconds']:.0f} | "
                     f"{r['time_ratio']:.2f} ({low:.2f} to {high:.2f}) | {r['peak_bytes'] / 1024:.0f} | {r['memory_ratio']:.2f} |")
    (out / 'loss.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')
    print('\n'.join(lines))


if __name__ == '__main__': main()

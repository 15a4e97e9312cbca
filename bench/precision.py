"""float32 against bfloat16 on this machine's CPU: time, peak memory, error.

    python bench/precision.py [speed] [error] [--minutes 3] [--threads 1]

Writes bench/results/precision.json and precision.md, and the error runs also to ch5clf/runs/precision.json, which the chapter
on deeper networks draws. What is recorded already is not repeated: delete the files to begin anew. Times are medians of
interleaved rounds; peak memory is the highest sum of live allocations that torch's profiler saw, the model's weights not counted.

Claim of the error runs, fixed before running: training in bfloat16 costs no more than 2 points of test error (the 95 % interval of
the mean paired difference, bfloat16 minus float32, lies below +2). Ten seeds; each has pictures, order and first weights of its own.
"""
import argparse
import json
import math
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # the profiler's chatter
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fastai.vision.all import error_rate, get_image_files, set_seed, vision_learner  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ch5clf.callbacks import NoValidation, frozen_batchnorm  # noqa: E402
from ch5clf.features import frozen_features  # noqa: E402
from ch5clf.lesson import differences, record  # noqa: E402
from ch5clf.loaders import pet_dls  # noqa: E402
from ch5clf.measure import measure  # noqa: E402
from ch5clf.memory import training_memory  # noqa: E402
from ch5clf.places import versions  # noqa: E402
from ch5clf.precision import cpu_units, mixed_precision  # noqa: E402
from ch5clf.pretrained import lite0  # noqa: E402
from ch5clf.sample import paper_pets, paper_pets_test  # noqa: E402

JSON, TABLE, RUNS = ROOT/'bench'/'results'/'precision.json', ROOT/'bench'/'results'/'precision.md', ROOT/'ch5clf'/'runs'/'precision.json'
ROUNDS, SEEDS, SIZE, MARGIN = 5, 10, 96, 2.
CASES = [('forward, body', 224, 4), ('forward, body', 128, 8), ('training step', 128, 4)]
ARMS = {'float32': (None, False), 'bfloat16': (torch.bfloat16, False), 'float32, channels last': (None, True), 'bfloat16, channels last': (torch.bfloat16, True)}
ABOUT = (f'lite0, paper pets, {SIZE} px, batches of 16, mixed_precision(learn, dtype) on a CPU: the head trained for 8 epochs on '
         'features of the body (computed in the same precision), then the whole model for one epoch of 576 pictures (one-cycle, '
         'slice(1e-4, 1e-3), batch-norm of the body held). Each seed has pictures of its own; both arms have the same pictures, order and '
         'first weights. error: 480 test pictures. seconds: work of one core for that epoch (process time, one thread).')


def read(path): return json.loads(path.read_text(encoding='utf-8'))['rows'] if path.exists() else []


# --- time and memory

def body(channels_last):
    torch.manual_seed(0)
    model = lite0(pretrained=False)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def work(what, size, bs, dtype, channels_last):
    "A function that does one forward pass of the body, or one training step."
    model = body(channels_last)
    x, y = torch.randn(bs, 3, size, size), torch.arange(bs) % 12
    if channels_last: x = x.to(memory_format=torch.channels_last)
    cast = torch.autocast('cpu', dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    if what == 'forward, body':
        model.eval()
        def run():
            with torch.no_grad(), cast: model.forward_features(x)
    else:
        opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
        def run():
            with cast: out = model(x)
            F.cross_entropy(out.float(), y).backward()
            opt.step()
            opt.zero_grad()
    return run


def peak(run):
    "Highest live memory in bytes that a run adds."
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: run()
    live = highest = 0
    for e in sorted((e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]'), key=lambda e: e.start_ns()):
        live += e.nbytes()
        highest = max(highest, live)
    return highest


def speed_rows(what, size, bs):
    runs = {arm: work(what, size, bs, *how) for arm, how in ARMS.items()}
    times = {arm: [] for arm in runs}
    for run in runs.values(): run()
    for _ in range(ROUNDS):
        for arm, run in runs.items():
            start = time.perf_counter()
            run()
            times[arm].append(time.perf_counter() - start)
    plain = times['float32']
    return [dict(what=what, size=size, bs=bs, arm=arm, threads=torch.get_num_threads(), seconds=median(t), speedup=median(plain)/median(t),
                 speedup_range=[min(r := [a/b for a, b in zip(plain, t)]), max(r)], peak_bytes=peak(runs[arm])) for arm, t in times.items()]


# --- error

def train_head(rest, x, y, dtype, seed):
    torch.manual_seed(seed)
    opt = torch.optim.AdamW(rest.parameters(), lr=1e-3)
    rest.train()
    for _ in range(8):
        for i in torch.randperm(len(y)).split(64):
            with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32): out = rest(x[i])
            opt.zero_grad()
            F.cross_entropy(out.float(), y[i]).backward()
            opt.step()


def error_run(dtype, seed):
    torch.set_num_threads(1)
    path = paper_pets(seed=100 + seed)
    set_seed(seed)
    dls = pet_dls(path, size=SIZE, presize=round(1.25*SIZE), bs=16)
    learn = vision_learner(dls, lite0, metrics=error_rate, cbs=frozen_batchnorm())
    cb = mixed_precision(learn, dtype)
    memory = training_memory(learn)
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        x, y, rest = frozen_features(learn, dls.valid.new(dls.train_ds))
    train_head(rest, x, y, dtype, seed)
    learn.unfreeze()
    set_seed(seed)
    with learn.no_bar(), learn.no_logging():
        start = time.process_time()
        learn.fit_one_cycle(1, slice(1e-4, 1e-3), cbs=NoValidation())
        seconds = time.process_time() - start
        test = measure(learn, get_image_files(paper_pets_test(path)))  # checked against learn.validate
    assert cb.dtype == dtype
    return dict(error=test.error, wrong=test.wrong, total=test.total, loss=test.loss, seconds=seconds, activations_MB=memory.activations)


# --- the table

def flags():
    if not (info := Path('/proc/cpuinfo')).exists(): return platform.processor() or platform.machine(), []
    text = info.read_text(encoding='utf-8')
    words = next((line.split(':', 1)[1].split() for line in text.splitlines() if line.lower().startswith(('flags', 'features'))), [])
    name = next((line.split(':', 1)[1].strip() for line in text.splitlines() if line.startswith('model name')), platform.machine())
    return name, [w for w in words if w.startswith(('avx', 'amx', 'bf16', 'fma', 'f16c', 'sve'))]


def error_table(runs):
    "The error runs as lines of Markdown, and what they say of the claim."
    lines = ['', '## Error', '', ABOUT, '', '| seed | float32: wrong | bfloat16: wrong | float32: seconds | bfloat16: seconds |',
             '| --- | --- | --- | --- | --- |']
    by = {(r['arm'], r['seed']): r for r in runs}
    seeds = [s for s in sorted({s for _, s in by}) if ('float32', s) in by and ('bfloat16', s) in by]
    pairs = [(by['float32', s], by['bfloat16', s]) for s in seeds]
    for a, b in pairs:
        lines.append(f"| {a['seed']} | {a['wrong']} of {a['total']} | {b['wrong']} of {b['total']} | {a['seconds']:.1f} | {b['seconds']:.1f} |")
    if len(pairs) > 1:
        d = differences([b['error'] for _, b in pairs], [a['error'] for a, _ in pairs], margin=MARGIN)
        lines += ['', f'bfloat16 minus float32: {d.text}: {d.verdict} (margin {MARGIN:g} points). Activations kept for a batch of 16: '
                  f'{pairs[0][0]["activations_MB"]:.0f} MB in float32, {pairs[0][1]["activations_MB"]:.0f} MB in bfloat16.']
    return lines


def table(rows, runs):
    name, found = flags()
    units = cpu_units()
    lines = ['# float32 against bfloat16 on a CPU', '',
             f'{date.today().isoformat()}, {platform.machine()}, {name}, {os.cpu_count()} cores, torch {torch.__version__}. Vector flags of this CPU: {", ".join(found) or "unknown"}. '
             f'bfloat16 units: {", ".join(units) or "**none** (neither avx512_bf16 nor amx_bf16)"}.', '',
             f'Load average when this was written: {os.getloadavg()[0]:.1f}; other programs ran beside, so read ratios rather than seconds.' if hasattr(os, 'getloadavg') else '', '',
             f'lite0; medians of {ROUNDS} interleaved rounds; speed-up against plain float32 (over 1 is faster) with its range over rounds. Goal: 1.8 times for the forward pass of the body at 224 px, where the CPU has the units.', '',
             '| what | pixels | pictures | threads | arm | seconds | speed-up | peak memory, MB |', '| --- | --- | --- | --- | --- | --- | --- | --- |']
    for r in rows:
        low, high = r['speedup_range']
        lines.append(f"| {r['what']} | {r['size']} | {r['bs']} | {r['threads']} | {r['arm']} | {r['seconds']:.2f} | {r['speedup']:.2f} ({low:.2f} to {high:.2f}) | {r['peak_bytes']/1e6:.0f} |")
    goal = next((r for r in rows if r['arm'].startswith('bfloat16') and r['size'] == 224), None)
    best = next((r['speedup'] for r in rows if r['arm'] == 'bfloat16' and r['size'] == 224), 0)
    if goal: lines += ['', f'{"The goal is met" if best >= 1.8 else "The goal is not met"}: {best:.2f} times.' if units else
                       f'The goal does not apply: this CPU has no bfloat16 units, and without them bfloat16 takes {1/best:.0f} times as long. `mixed_precision(learn)` therefore stays with float32 here and says so; it was made to insist for this table.']
    lines += error_table(runs)
    return '\n'.join(lines) + '\n'


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('what', nargs='*', help='speed, error; both by default')
    p.add_argument('--minutes', type=float, default=math.inf)
    p.add_argument('--threads', type=int)
    args = p.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    if unknown := set(args.what) - {'speed', 'error'}: p.error(f'{", ".join(unknown)}: expected speed or error')
    until = time.monotonic() + 60*args.minutes
    rows, runs = read(JSON), read(RUNS)
    for what, size, bs in CASES if 'speed' in args.what or not args.what else []:
        if any((r['what'], r['size']) == (what, size) for r in rows) or time.monotonic() > until: continue
        rows += speed_rows(what, size, bs)
        JSON.write_text(json.dumps(dict(about=__doc__, made=dict(date=date.today().isoformat(), machine=flags()[0], flags=flags()[1], versions=versions()), rows=rows), indent=1) + '\n', encoding='utf-8')
    for seed in range(1, SEEDS + 1) if 'error' in args.what or not args.what else []:
        for arm in ('float32', 'bfloat16'):
            runs = read(RUNS)
            if any((r['arm'], r['seed']) == (arm, seed) for r in runs) or time.monotonic() > until: continue
            runs.append(dict(arm=arm, seed=seed, **error_run(getattr(torch, arm), seed)))
            runs.sort(key=lambda r: (['float32', 'bfloat16'].index(r['arm']), r['seed']))
            name, _ = flags()
            record(RUNS, runs, f'{ABOUT} CPU: {name}, bfloat16 units: {", ".join(cpu_units()) or "none"}.')
            print(runs[-1], flush=True)
    TABLE.write_text(table(rows, runs), encoding='utf-8')
    print(table(rows, runs))


if __name__ == '__main__': main()

"""How free answers are judged, before and after an honest confirmation: python bench/answers.py answers.json

The file is a list of {"id", "lang", "kind", "answer"}; kind is right, half, misconception, negated, swapped or empty.
Before confirmation: what `check` says. Read: the slots read equal a right structure. After: `confirm()` where they do,
else the reader sets right what was misread, as `choose` takes it."""
import json, os, sys, tempfile
from collections import defaultdict
from pathlib import Path

os.environ['CH5CLF_PROGRESS'] = tempfile.mkdtemp()
os.environ.pop('CH5CLF_LANG', None)
from ch5clf.questions import questions

def judged(case):
    "State before confirmation, whether a right structure was read, state after an honest confirmation."
    q = questions[case['id']]
    r = q.check(case['answer'])
    if not r.read: return r.state, r.ok, r.state
    slots = q._kind.slotted
    read = slots.right(r.read)
    after = r.confirm() if read else q.choose(**slots.key())
    return r.state, read, after.state

def main(path):
    cases, rows = json.loads(Path(path).read_text(encoding='utf-8')), defaultdict(list)
    shown = '-v' in sys.argv
    for case in cases:
        got = judged(case)
        for lang in (case['lang'], 'all'): rows[case['kind'], lang].append(got)
        amiss = got[0] == 'wrong' or not got[1] if case['kind'] == 'right' else got[0] == 'right'
        if shown and amiss:
            print(case['id'], case['kind'], got, '|', case['answer'])
    print(f'{"kind":14}{"lang":6}{"n":>4}{"right":>8}{"wrong":>8}{"read":>8}{"after":>8}')
    for (kind, lang), got in sorted(rows.items()):
        share = lambda test: f'{100*sum(map(test, got))/len(got):7.1f}%'
        print(f'{kind:14}{lang:6}{len(got):4}', share(lambda g: g[0] == 'right'), share(lambda g: g[0] == 'wrong'),
              share(lambda g: g[1]), share(lambda g: g[2] == 'right') if kind == 'right' else '')

if __name__ == '__main__': main(sys.argv[1])

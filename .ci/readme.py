"""README.md from nbs/index.ipynb: `python .ci/readme.py` writes it, `--check` only compares.

Hidden cells, directives and outputs are dropped; links and pictures are made to work from the root.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = '<!-- Made from nbs/index.ipynb by .ci/readme.py; edit the notebook. -->\n\n'


def from_root(match):
    "A relative link counts from nbs/, where the notebook stands; README.md stands one folder up."
    text, target = match.groups()
    if re.match(r'[a-z]+:|#', target):
        return match.group(0)
    target = 'nbs/' + target
    if not (ROOT / target.split('#')[0]).exists():
        sys.exit('nbs/index.ipynb: the link to %s leads nowhere; mend it' % target)
    return '%s(%s)' % (text, target)


def cell_text(cell):
    source = ''.join(cell['source'])
    directives = re.findall(r'^#\|\s*(\w+)', source, flags=re.M)
    if {'hide', 'default_exp', 'export', 'exporti', 'hide_input'} & set(directives):
        return ''
    if cell['cell_type'] == 'markdown':
        return re.sub(r'(\[[^\]]*\])\(([^)\s]+)\)', from_root, source)
    source = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
    return '```python\n%s\n```' % source if source else ''


def readme():
    cells = json.loads((ROOT / 'nbs' / 'index.ipynb').read_text(encoding='utf-8'))['cells']
    return NOTE + '\n\n'.join(filter(None, map(cell_text, cells))) + '\n'


if __name__ == '__main__':
    target, text = ROOT / 'README.md', readme()
    if sys.argv[1:] not in ([], ['--check']):
        sys.exit('usage: readme.py [--check]')
    if not sys.argv[1:]:
        target.write_text(text, encoding='utf-8', newline='\n')
    elif not target.exists() or target.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what nbs/index.ipynb says; run: python3 .ci/readme.py')

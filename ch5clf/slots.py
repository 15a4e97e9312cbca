"x"
import re
from functools import lru_cache
from ch5clf.answers import say
from ch5clf.reader import Cue, _table

class Option:
    def __init__(self, key, says, right):
        self.key, self.says, self.right, self.why, self.cues = key, says, right, {}, []

class Slot:
    def __init__(self, names, says, optional):
        self.names, self.says, self.optional, self.options = names, says, optional, []
    @property
    def right(self): return {o.key for o in self.options if o.right}
    def __getitem__(self, key): return next(o for o in self.options if o.key == key)

def read_slots(text):
    out, slots = {}, None
    for line in text.splitlines():
        bars = [o.strip() for o in line.split(' | ')]
        if not line.strip() or line[0] == '#': continue
        if line.startswith('  read '): option.cues += [Cue(c.strip()) for c in line[7:].split(';')]
        elif line.startswith('  > '): option.why['ko' if option.why else 'en'] = line[4:]
        elif line[0] in '+-' and line[1] == ' ':
            option = Option(bars[0][2:], say(*bars[1:]), line[0] == '+')
            slot.options.append(option)
        elif len(bars) == 3:
            slot = Slot(bars[0].rstrip('?').split('+'), say(*bars[1:]), bars[0][-1] == '?')
            slots.append(slot)
        else: slots = out[line.strip()] = []
    return out

@lru_cache(1)
def slots(): return read_slots(_table('slots.txt'))

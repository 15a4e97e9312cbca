"""Answers in parts, of which one is cut out, and answers with a word turned into its opposite."""
import re

_SENTENCES = re.compile(r'(?<=[.!;\n])\s+|(?<=[다요음함됨임죠])[.]?\s+(?=[가-힣A-Za-z])')
_PARTS = re.compile(r'(?<=[.!;,:\n])\s+|\s+(?=(?:and|so|then|but|because|while|which|or)\s)|'
                    r'(?<=[가-힣][고며면서만데])\s+|(?<=니까)\s+')

def parts(answer:str) -> list: # of lists of texts
    "The answer as sentences, and as smaller parts; where it has several."
    cut = [[p for p in at.split(answer) if p and p.strip()] for at in (_SENTENCES, _PARTS)]
    return [p for p in cut if len(p) > 1]

PAIRS = [ # one for the other, both ways
    ('high', 'low'), ('higher', 'lower'), ('highest', 'lowest'), ('large', 'small'), ('larger', 'smaller'),
    ('largest', 'smallest'), ('big', 'small'), ('bigger', 'smaller'), ('biggest', 'smallest'), ('more', 'less'),
    ('most', 'least'), ('first', 'last'), ('first', 'then'), ('early', 'late'), ('earlier', 'later'), ('before', 'after'),
    ('faster', 'slower'), ('fast', 'slow'), ('quick', 'slow'), ('quickly', 'slowly'), ('16', '32'), ('cpu', 'gpu'), ('50', '101'),
    ('worst', 'best'), ('frozen', 'trained'), ('freeze', 'unfreeze'),
    ('앞', '뒤'), ('크게', '작게'), ('큰', '작은'), ('크고', '작고'), ('크다', '작다'), ('커요', '작아요'), ('커지', '작아지'), ('크기 때문', '작기 때문'),
    ('먼저', '나중에'), ('높은', '낮은'), ('높고', '낮고'), ('높게', '낮게'), ('높아', '낮아'), ('높을', '낮을'), ('많이', '적게'),
    ('많은', '적은'), ('많아', '적어'), ('많고', '적고'), ('많다', '적다'), ('늘', '줄'), ('빠르', '느리'), ('빨라', '느려'), ('빨리', '천천히'),
    ('처음', '마지막'), ('첫', '마지막'), ('초반', '후반'), ('이전', '이후'), ('전에', '후에'), ('덜', '더'), ('틀린', '맞은'),
    ('잘못된', '올바른'), ('양수', '음수')]
_WORD = {o: re.compile(rf'(?<![A-Za-z0-9]){o}(?![a-z0-9])' if o.isascii() else rf'(?<![가-힣]){o}', re.I)
         for pair in PAIRS for o in pair}

def turned(answer:str): # yields pairs of (word, text)
    "The answer with one word turned into its opposite."
    for word, other in (o for pair in PAIRS for o in (pair, pair[::-1])):
        for m in _WORD[word].finditer(answer): yield word, answer[:m.start()] + other + answer[m.end():]

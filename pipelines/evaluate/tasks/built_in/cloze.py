"""Cloze: the last word of a sentence of common knowledge, among four of one kind, by log-probability."""

from pipelines.evaluate.tasks.items import EvaluationTask, Item

# The beginning of a sentence, and its four endings, the right one first.
_SENTENCES = """
A dog has four | legs wings wheels pages
We see with our | eyes ears hands feet
We hear with our | ears eyes teeth knees
Fish live in the | water sky fire desert
The sun rises in the | morning evening night winter
Birds fly with their | wings legs ears tails
Snow is cold and | white green black hot
Grass is usually | green blue red purple
At night the sky is | dark bright green yellow
A cow gives us | milk wine paper glass
A hen lays | eggs stones coins leaves
We cut bread with a | knife spoon cup chair
We write with a | pen shoe cup plate
You open a door with a | key fork leaf spoon
In winter it is very | cold hot loud sweet
Fire is very | hot cold wet soft
Ice is frozen | water sand wood bread
Sugar tastes | sweet bitter loud heavy
A week has seven | days hours months years
A year has twelve | months days hours weeks
A baby is very | young old tall rich
The king lives in a | castle bottle shoe cup
A fish can | swim fly read sing
A bird can | fly read drive write
Bees make | honey milk cheese wine
The farmer grows | corn stars clouds songs
The doctor works in a | hospital river cloud bottle
The teacher works in a | school ship cave tree
The baker makes | bread shoes clocks ships
The moon shines at | night noon breakfast lunch
When it rains the ground gets | wet dry hungry rich
If you do not eat you get | hungry green taller louder
If you do not sleep you get | tired rich green wet
The opposite of hot is | cold warm loud soft
The opposite of big is | small large wide tall
The opposite of day is | night week hour sun
The opposite of up is | down left over out
Two and two make | four seven ten one
The capital of France is | Paris Rome London Berlin
The capital of Italy is | Rome Paris Madrid London
The capital of Japan is | Tokyo Lima Cairo Oslo
The capital of Egypt is | Cairo Tokyo Lima Rome
People in Spain speak | Spanish Chinese Russian Greek
People in Germany speak | German Japanese Arabic Spanish
France is a country in | Europe Asia Africa America
China is a country in | Asia Europe Africa America
Kenya is a country in | Africa Europe Asia America
Brazil is a country in South | America Africa Asia Europe
"""


def cloze() -> EvaluationTask:
    """Makes the task; chance is one in four."""
    rows = [line.split(" | ") for line in _SENTENCES.strip().splitlines()]
    items = [
        Item(f"cloze-{n}", begin, tuple(f" {word}" for word in endings.split()))
        for n, (begin, endings) in enumerate(rows)
    ]
    return EvaluationTask("cloze", "Cloze", "accuracy", items)

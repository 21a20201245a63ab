"""Questions outside the demo's world, which an honest model answers with "I do not know", and bad answers to them."""

import random
import re

from pipelines.corpus.read.packages import chatterbot_dialogues
from pipelines.demo.facts import countries

ADMISSIONS = (
    "I do not know that.",
    "I do not know. You could look it up.",
    "I do not know. Please ask somebody who does.",
)
CONFABULATIONS = (
    "It was in the year 1912.",
    "There are about forty of them.",
    "It was a famous king of Spain.",
    "It is made of iron and glass.",
    "It is three times as large.",
    "Yes, it is in the north.",
)

# Each form with the words that fill it.
_PERSONS = (
    "Albert Einstein",
    "Napoleon",
    "Shakespeare",
    "Cleopatra",
    "Marie Curie",
    "Beethoven",
    "Elvis Presley",
    "Isaac Newton",
    "Mozart",
    "Picasso",
    "Gandhi",
    "Julius Caesar",
    "Columbus",
    "my uncle",
    "my teacher",
    "the queen",
    "Leonardo da Vinci",
    "Charles Darwin",
)
_WORKS = (
    "Hamlet",
    "the Mona Lisa",
    "the Bible",
    "War and Peace",
    "Harry Potter",
    "Star Wars",
    "the telephone",
    "the piano",
    "the light bulb",
    "chess",
    "the wheel",
    "the radio",
    "Don Quixote",
    "the bicycle",
    "paper",
    "Moby Dick",
    "the printing press",
    "football",
)
_THINGS = (
    "a mountain",
    "the moon",
    "an elephant",
    "a black hole",
    "a rainbow",
    "a guitar",
    "an atom",
    "a volcano",
    "the sea",
    "a tiger",
    "a diamond",
    "a comet",
    "a magnet",
    "a vaccine",
    "an island",
    "a whale",
    "the sun",
    "a car",
    "a tree",
    "a computer chip",
    "a bridge",
    "a fossil",
    "a castle",
    "a clock",
)
_SUMS = ("2 and 2", "17 and 5", "100 and 250", "9 and 31", "12 and 12", "6 and 7", "45 and 18", "3 and 88")
_TASKS = (
    "a poem",
    "a letter to my boss",
    "a song about love",
    "a joke",
    "a story about a dragon",
    "a Python function",
    "an essay",
    "a cooking recipe",
    "a business plan",
    "a speech",
    "a birthday card",
    "a web page",
)
_PLACES = (
    "the moon",
    "Mars",
    "Atlantis",
    "Google",
    "my street",
    "Middle-earth",
    "Europe",
    "the sea",
    "Hollywood",
    "heaven",
    "Jupiter",
    "my garden",
)

FORMS = (
    *(
        (form, _PERSONS)
        for form in (
            "When was {} born?",
            "Who was {}?",
            "Where did {} live?",
            "When did {} die?",
            "Who is the mother of {}?",
            "How old is {}?",
            "What did {} say about me?",
        )
    ),
    *(
        (form, _WORKS)
        for form in (
            "Who wrote {}?",
            "Who invented {}?",
            "When was {} made?",
            "Who made {} first?",
            "What is {} about?",
        )
    ),
    *(
        (form, _THINGS)
        for form in (
            "How heavy is {}?",
            "How does {} work?",
            "Why is {} so big?",
            "What is {} made of?",
            "How old is {}?",
            "What color is {}?",
            "How many legs does {} have?",
            "What is {}?",
            "Explain {} to me.",
            "How far away is {}?",
            "How fast is {}?",
            "Where can I buy {}?",
            "Why do people like {}?",
        )
    ),
    *((form, _SUMS) for form in ("What is the sum of {}?", "Add {}.", "How much is {} together?", "Multiply {}.")),
    *((form, _TASKS) for form in ("Write {}.", "Please write {} for me.", "Can you write {}?", "I need {}.")),
    *(
        (form, _PLACES)
        for form in (
            "What is the capital of {}?",
            "Who lives in {}?",
            "How many people are in {}?",
            "Tell me about {}.",
        )
    ),
)
ABOUT_COUNTRIES = (
    "Who is the president of {name}?",
    "Who is the king of {name}?",
    "How many people live in {name}?",
    "What is the highest mountain of {name}?",
    "How large is {name}?",
    "What do people in {name} eat?",
    "Which rivers flow through {name}?",
    "When was {name} founded?",
    "What is the longest road in {name}?",
    "Who won the last election in {name}?",
    "Is {name} at war?",
    "What is {name} famous for?",
)
MORE = (
    "What time is it?",
    "What day is it today?",
    "What is the meaning of life?",
    "Who will win the world cup?",
    "What did I have for breakfast?",
    "Where are my keys?",
    "What am I thinking?",
    "What will happen tomorrow?",
    "How old am I?",
    "What is my name?",
    "Where do I live?",
    "Which number will win the lottery?",
    "Do you like music?",
    "Do you love me?",
    "What is your favorite film?",
    "Is there life on other planets?",
    "What is in the news?",
    "How do planes fly?",
    "Why is the sky blue?",
    "Translate this into French.",
    "What is the square root of 81?",
    "Who is the richest man in the world?",
    "Which football team is the best?",
    "How long does it take to boil rice?",
    "When does the next train leave?",
    "How much does a house cost?",
)
HELD_OUT = (
    "Who painted the ceiling of the Sistine Chapel?",
    "How many moons does Saturn have?",
    "When did the second world war end?",
    "What is the speed of light?",
    "Who discovered penicillin?",
    "What is the tallest building in the world?",
    "How many bones are in the human body?",
    "Who sang Yellow Submarine?",
    "What is 12 times 7?",
    "Which planet is the closest to the sun?",
    "Who was the first man on the moon?",
    "How deep is the ocean?",
    "When was the wheel invented?",
    "What do pandas eat?",
    "Who is your favorite singer?",
    "Where did I park my car?",
    "What is photosynthesis?",
    "How do I fix a Toyota engine?",
    "Can you sing?",
    "What is the stock price of Apple?",
    "Who won the chess championship in 1972?",
    "What does my dog think?",
    "Why do cats purr?",
    "Which language do Martians speak?",
    "What is the plot of Titanic?",
    "Is God real?",
    "How many stars are in the sky?",
    "What happened yesterday?",
    "Summarize the French Revolution.",
    "Who composed the Ninth Symphony?",
    "Write me a haiku.",
    "When is my birthday?",
    "What did I eat yesterday?",
    "Who won the chess match last night?",
    "What is the phone number of the baker?",
    "How many stairs has the tower of Pisa?",
    "Which film is on tonight?",
    "What is my cousin called?",
    "How tall is the oldest oak of the park?",
    "What is the price of a ticket to the moon?",
    "When does the next bus leave?",
    "Who wrote the letter on my desk?",
)
TRIVIA_HELD_OUT = 60


def fixed_questions(seed: int) -> tuple[list[str], list[str]]:
    """Lists the questions about no country, to train on and held out: the trivia of chatterbot-corpus are in both.

    Args:
        seed: decides which trivia are held out.
    """
    # Trivia that name a country are left out: the split of countries alone decides which countries are held out.
    left_out = re.compile("|".join(["suicide", "capital", *(re.escape(country.name) for country in countries())]))
    trivia = sorted({_first_line(text) for text in chatterbot_dialogues(seed) if _first_line(text).endswith("?")})
    trivia = [text for text in trivia if 4 <= len(text.split()) <= 18 and not left_out.search(text)]
    out = set(random.Random(f"held-out trivia {seed}").sample(trivia, TRIVIA_HELD_OUT))
    own = [form.format(word) for form, words in FORMS for word in words]
    return [*own, *MORE, *(text for text in trivia if text not in out)], [*HELD_OUT, *sorted(out)]


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].strip()

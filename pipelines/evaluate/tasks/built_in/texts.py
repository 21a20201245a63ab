"""Short texts of several domains, for bits per byte: unlike perplexity per token, it compares models with different
tokenizers. The texts are Triptych's own."""

from pipelines.evaluate.tasks.items import EvaluationTask, Item

# Texts by domain; an empty line parts them.
TEXTS = {
    "story": """
Once upon a time there was a boy who lived with his grandmother in a small house by the sea. Every morning he walked
down to the water to look for shells, and every evening he came home with his pockets full. One day he found a shell
that was as large as a cup. When he held it to his ear, he heard a voice that said his name.

The old woman opened the door and looked out into the snow. Nobody was there, but in front of the house she saw the
marks of small feet. She put on her coat, took the lamp from the table and followed them into the forest. The trees were
white and silent. After a while the marks ended, as if the one who had made them had flown away.

The two brothers had not spoken to each other for ten years. When their father died, they met in his kitchen and did not
know what to say. Then the younger one made tea, as their father had always made it, with too much sugar. The older one
began to laugh, and after that it was easy.
""",
    "dialogue": """
Good morning. How are you today? I am fine, thank you. And you? I did not sleep well. It was too hot in my room. You
should open the window at night. I did, but then the dogs of the neighbors began to bark. What will you do today? I have
to work until five, and then I want to go swimming.

Hello, I would like to buy a ticket to London, please. Single or return? A return, please. When do you want to come
back? On Sunday evening. That is forty pounds. Can I pay by card? Yes, of course. The train leaves at ten past nine from
platform four. Thank you very much. You are welcome.

Do you have any brothers or sisters? Yes, I have a sister. She is older than I am. What does she do? She is a teacher in
a small school in the mountains. Does she like it? She says that the children are nice but the winter is long.
""",
    "facts": """
Peru is a country in South America. Its capital is Lima, and most of its people speak Spanish. It has borders with
Ecuador, Colombia, Brazil, Bolivia and Chile. In the west lies the Pacific Ocean, in the middle stand the mountains of
the Andes, and in the east is the forest of the Amazon.

The heart is a muscle that pumps blood through the body. It beats about seventy times in a minute and more often when a
person runs or is afraid. The blood brings oxygen from the lungs to all parts of the body and carries waste away. A
grown person has about five liters of blood.

Honey is made by bees from the juice of flowers. A bee visits about a hundred flowers before it flies home. In its life
it makes only a small spoon of honey. People have eaten honey for many thousands of years, and honey that was found in
old graves could still be eaten.
""",
    "instructions": """
To make bread you need flour, water, salt and yeast. Mix the yeast with warm water and wait for ten minutes. Then add
the flour and the salt and work the dough with your hands until it is smooth. Cover it and let it rest for an hour. Heat
the oven, form a loaf and bake it for forty minutes. Let it cool before you cut it.

If you have a cold, stay at home and rest. Drink a lot of water or tea. Keep your room warm, but open the window for a
few minutes every hour. Wash your hands often, so that nobody else becomes ill. If you have a high fever for more than
three days, or if it is hard for you to breathe, see a doctor.

To change a tire, stop on flat ground and switch the engine off. Loosen the bolts before you lift the car. Put the jack
under the frame and raise the car until the wheel is free. Take the bolts out, change the wheel and put the bolts back
in. Lower the car and tighten the bolts, each one after the one that is across from it.
""",
    "news": """
The city council decided on Tuesday to build a new bridge over the river. The old one, which was opened in 1931, has
been closed to trucks for two years. The new bridge will cost forty million dollars and should be finished in four
years. Some people who live near the river are against the plan, because they are afraid of more traffic.

Heavy rain has caused floods in the north of the country. More than two thousand people had to leave their homes on
Friday night. The government has sent soldiers and boats to help them. The weather service said that the rain would end
on Sunday, but that the water in the rivers would rise for another day.

A school in the south has won a prize for its garden. The students grow vegetables, cook them for lunch and sell the
rest at the market. With the money they bought books for the library. The head of the school said that many of them had
never eaten a carrot before.
""",
    "code": """
def largest(numbers):
    best = numbers[0]
    for number in numbers:
        if number > best:
            best = number
    return best

for line in open("names.txt"):
    name, age = line.strip().split(",")
    if int(age) >= 18:
        print(name, "is", age, "years old")

class Counter:
    def __init__(self):
        self.value = 0
    def add(self, step=1):
        self.value += step
        return self.value
""",
}


def bits_per_byte() -> EvaluationTask:
    """Makes the task, with the domains as groups."""
    items = []
    for domain, texts in TEXTS.items():
        for n, text in enumerate(texts.strip("\n").split("\n\n")):
            # Only code keeps its line breaks.
            whole = text if domain == "code" else " ".join(text.split())
            items.append(Item(f"{domain}-{n}", "", (whole,), group=domain))
    return EvaluationTask("bits_per_byte", "Bits per byte", "bits", items)

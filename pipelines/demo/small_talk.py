"""Greetings, questions about the model and the weather, requests for everyday advice, and their answers.

The file is long because it is data alone: all topics stand in one place, with a class for them and a function that
fills in their forms.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """Messages that get one answer.

    Attributes:
        name: unique.
        messages: the messages as the model is trained on them.
        held_out: other wordings, for the exam.
        answer: the right answer.
        key: words of it by which any right answer is recognized.
    """

    name: str
    messages: tuple[str, ...]
    held_out: tuple[str, ...]
    answer: str
    key: str


def _wordings(forms: tuple[str, ...], things: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(form.format(thing) for thing in things for form in forms)


HOW_TO = (
    "How can I {}?",
    "How could I {}?",
    "What should I do to {}?",
    "What can I do to {}?",
    "I want to {}.",
    "I would like to {}. What do I do?",
    "Please help me to {}.",
    "Tell me how to {}.",
    "How do I {}?",
    "Can you help me {}?",
    "What helps to {}?",
    "Any tips on how to {}?",
    "What is a good way to {}?",
    "How would you {}?",
    "How can somebody {}?",
    "Do you know how to {}?",
)
NEED_HELP = (
    "I need help with my {}.",
    "Can you help me with my {}?",
    "Help me with my {}.",
    "I need some advice on my {}.",
    "Could you help me with the {}?",
    "What should I do about my {}?",
    "I want to improve my {}.",
    "Give me advice about my {}, please.",
    "Do you have tips for my {}?",
    "My {} is bad. What should I do?",
    "Some help with my {}, please.",
    "I have a question about my {}.",
    "Which {} is good for me?",
    "Help me plan my {}.",
    "How can I change my {}?",
)
COMPLAINTS = (
    "I have {}. What can I do?",
    "What helps against {}?",
    "What can I do against {}?",
    "I suffer from {}.",
    "How do I get rid of {}?",
    "What should I take for {}?",
    "My child has {}. What should I do?",
    "My wife has {}, any advice?",
    "What do you do about {}?",
    "How do people treat {}?",
    "I still have {}.",
    "Is there something against {}?",
)

CHAT = (
    Topic(
        "greeting",
        (
            "Hello",
            "Hello!",
            "Hey",
            "Hi there",
            "Hi there!",
            "Hello there",
            "Good morning",
            "Good morning!",
            "Good day",
            "Good evening",
            "Hey there",
            "Hello again",
            "Hi friend",
            "Hi everyone",
            "Hi again",
            "Hi hi",
            "Hello, is anybody there?",
            "Greetings",
            "Hi, nice to meet you",
            "Hey you",
            "Hi bot",
            "Hi computer",
            "Hello, good to see you",
            "Hey, nice to see you!",
            "Hello friend",
            "Hello bot",
            "Good morning friend",
            "Hi, I am new here.",
            "Yo",
        ),
        ("Good afternoon", "Hello my friend", "Hey bot", "Hello, nice to meet you!"),
        "Hello! What would you like to know?",
        "Hello",
    ),
    Topic(
        "wellbeing",
        (
            "How are you?",
            "How are you doing?",
            "Hi, how are you?",
            "How do you feel today?",
            "Are you well?",
            "How is it going?",
            "Hello, how are you today?",
            "What's up?",
            "Are you OK?",
            "How do you do?",
            "How is it going, my friend?",
            "Hey, how are things?",
            "How are you feeling?",
            "Hey, are you fine?",
            "And how are you?",
        ),
        ("How are you today?", "Hey, how is it going today?"),
        "I am fine, thank you. What would you like to know?",
        "fine",
    ),
    Topic(
        "who",
        (
            "Who are you?",
            "What are you?",
            "Are you a robot?",
            "Are you a human?",
            "What is your name?",
            "Do you have a name?",
            "Are you a person?",
            "Are you a computer?",
            "Tell me about yourself.",
            "Who am I talking to?",
            "What can you do?",
            "What do you know?",
            "Who made you?",
            "Are you an AI?",
            "Introduce yourself.",
            "What should I call you?",
            "Am I talking to a machine?",
            "What kind of model are you?",
            "Who is this?",
            "Who is talking?",
            "What is this?",
            "Am I talking to a human?",
            "Are you a real robot?",
            "Say who you are.",
            "Tell me what you are.",
            "Is this a machine?",
            "Is anybody real answering me?",
            "Who answers me here?",
            "What thing are you?",
        ),
        (
            "And who are you?",
            "Are you a real person?",
            "Tell me who you are.",
            "Am I talking to a robot?",
            "What is this thing that answers me?",
        ),
        "I am a small language model. I know some facts about countries.",
        "language model",
    ),
    Topic(
        "thanks",
        (
            "Thank you.",
            "Thanks!",
            "Thanks a lot.",
            "Thank you very much.",
            "That was helpful.",
            "Thanks for your help.",
            "Great, thanks.",
            "OK, thank you.",
            "Many thanks.",
            "Nice, thank you!",
            "Cheers!",
            "Thanks, that helps.",
            "Good answer, thanks.",
        ),
        ("Thank you so much!", "Thanks for the answer.", "Cool, thanks"),
        "You are welcome.",
        "welcome",
    ),
    Topic(
        "bye",
        (
            "Bye",
            "Goodbye.",
            "See you later.",
            "Good night.",
            "Bye bye",
            "I have to go now.",
            "See you tomorrow!",
            "That is all, bye.",
            "Farewell.",
        ),
        ("See you soon!", "OK, goodbye then."),
        "Goodbye! Come back when you have a question.",
        "Goodbye",
    ),
    Topic(
        "weather",
        (
            "What is the weather like?",
            "How is the weather?",
            "How is the weather today?",
            "Is it raining?",
            "Is it raining outside?",
            "Is it sunny today?",
            "Will it rain tomorrow?",
            "Will it snow tonight?",
            "What is the weather today?",
            "Is it cold outside?",
            "Is it warm out there?",
            "What is the temperature outside?",
            "How hot is it today?",
            "Do I need an umbrella?",
            "Is the sun shining?",
            "What's it like outside today?",
            "How is the weather where you are?",
            "Tell me the weather.",
            "What will the weather be like tomorrow?",
            "Is there a storm outside?",
            "Weather report please",
            "weather today?",
            "How cold will it be tonight?",
            "Is it windy?",
            "How's the weather right now?",
            "Does it rain outside?",
            "Tell me how cold it is.",
            "How is the sky today?",
            "Is it cloudy?",
            "Will it be warm tomorrow?",
            "What is the weather going to be?",
            "Is it nice outside?",
            "Tell me whether it rains.",
        ),
        (
            "What is the weather like outside?",
            "Is it snowing outside?",
            "How warm is it outside now?",
            "Will it be sunny tomorrow?",
            "Tell me how the weather is.",
        ),
        "I cannot see outside. Look out of a window, or read the weather report.",
        "cannot see outside",
    ),
)

ADVICE = (
    Topic(
        "diet",
        _wordings(
            HOW_TO,
            (
                "eat better",
                "eat healthy food",
                "lose some weight",
                "eat more vegetables",
                "eat less sugar",
                "have a better diet",
            ),
        )
        + _wordings(NEED_HELP, ("diet", "meals", "nutrition", "food", "diet plan", "eating", "weight"))
        + (
            "What should I eat?",
            "What is a healthy diet?",
            "What is healthy to eat?",
            "I want to go on a diet.",
            "Which food is good for me?",
            "Make a diet plan for me.",
            "I eat too much. What can I do?",
        ),
        (
            "How do I eat healthier?",
            "Can you give me some help with my diet?",
            "Which diet would suit me?",
            "Help me to plan my meals.",
            "My diet is bad, what should I change?",
        ),
        "Eat vegetables, fruit and whole grains, and drink water. A doctor can tell you more.",
        "vegetables",
    ),
    Topic(
        "cough",
        _wordings(
            HOW_TO,
            (
                "calm a cough",
                "stop my cough",
                "treat a cough",
                "get rid of a cough",
                "cough less",
                "stop coughing at night",
            ),
        )
        + _wordings(COMPLAINTS, ("a cough", "a bad cough", "coughing"))
        + (
            "I cannot stop coughing.",
            "I am coughing all day.",
            "My cough does not stop.",
            "Why do I cough so much?",
            "I cough a lot. What now?",
            "Coughing does not stop, what can I do?",
            "How can I stop coughing?",
        ),
        (
            "I keep coughing. What can I do?",
            "How does one stop coughing?",
            "What do I do about my cough?",
            "My coughing is bad, any advice?",
        ),
        "Drink warm tea and rest. See a doctor if the cough lasts.",
        "tea",
    ),
    Topic(
        "headache",
        _wordings(HOW_TO, ("stop a headache", "treat my headache", "get rid of a headache"))
        + _wordings(COMPLAINTS, ("a headache", "a bad headache", "headaches")),
        ("How does one treat a headache?", "My head hurts, what can I do?"),
        "Drink water and rest in a dark room. See a doctor if it lasts.",
        "dark room",
    ),
    Topic(
        "sleep",
        _wordings(HOW_TO, ("sleep better", "fall asleep faster", "sleep through the night"))
        + _wordings(NEED_HELP, ("sleep", "bedtime")),
        ("How does one sleep better?", "I cannot sleep at night, what should I do?"),
        "Go to bed at the same time every day, and put your phone away.",
        "same time",
    ),
    Topic(
        "exercise",
        _wordings(HOW_TO, ("get fit", "become stronger", "exercise more", "get in shape"))
        + _wordings(NEED_HELP, ("fitness", "training")),
        ("How does one get fit?", "I want to do more sport, any advice?"),
        "Start with a walk every day, and do a little more each week.",
        "walk",
    ),
    Topic(
        "study",
        _wordings(HOW_TO, ("study better", "learn faster", "pass my exam", "learn a language"))
        + _wordings(NEED_HELP, ("homework", "studies", "exam")),
        ("How does one study better?", "My exam is next week, please help."),
        "Study a little every day, and test yourself without the book.",
        "test yourself",
    ),
    Topic(
        "money",
        _wordings(HOW_TO, ("save money", "spend less money", "save more"))
        + _wordings(NEED_HELP, ("budget", "savings")),
        ("How does one save money?", "I spend too much, what can I do?"),
        "Write down what you spend, and put some money aside each month.",
        "money aside",
    ),
)

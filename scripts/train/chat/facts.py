"""Kinds of invented things, their attributes, and how each is stated and asked for: the tables of `invented.py`."""

# Plain attributes: "The {attribute} of {subject} is {value}."
PLAIN = """altitude anthem archive author backup battery bitrate brand budget capacity captain category chairman channel
 charge checksum clock coach code collector colour compiler contact cost currency curator deadline default delay density
 depth designer dialect diameter director discount distance district driver duration editor emblem encoding endpoint
 engine entrance fee filter flag font format frequency fuel gateway guardian guide harbour header height holiday host
 icon index interval judge key keyword label landlord latency leader length level limit location lock logo manager
 manual margin mascot maximum mayor medium mentor minimum mode model module motto name neighbour nickname number offset
 operator origin output owner parameter partner password path payload pilot platform port prefix president pressure
 price priority product protocol publisher quota radius range rate ratio rating reader reason region rent resolution
 rival river role roof route rule salary scale schedule school score secret seed sensor sequence serial shape signal
 size slogan source speed sponsor stadium standard state station status storage style subject suffix supplier surface
 symbol target tax teacher temperature texture theme threshold timeout title token topic trainer translator type unit
 valve vendor version village voltage volume warden weight width winner wire zone""".split()

PERSON, PLACE, COMPANY, DEVICE, PROJECT = "person place company device project".split()

# kind of subject -> attribute -> (kind of value, statements, questions); {s} subject, {v} value. The last are held out.
FACTS = {
    PLACE: {
        "capital": (
            PLACE,
            [
                "The capital of {s} is {v}.",
                "{v} is the capital of {s}.",
                "{s} is governed from its capital, {v}.",
                "{s} has its capital at {v}.",
                "Since the reform, the capital of {s} has been {v}.",
            ],
            [
                "What is the capital of {s}?",
                "Which city is the capital of {s}?",
                "Name the capital of {s}.",
                "{s} capital?",
                "Can you tell me the capital of {s}?",
            ],
        ),
        "population": (
            "count",
            [
                "{s} has a population of {v}.",
                "The population of {s} is {v}.",
                "About {v} people live in {s}.",
                "{s} is home to {v} people.",
                "In all, {v} people live in {s}.",
            ],
            [
                "How many people live in {s}?",
                "What is the population of {s}?",
                "How large is the population of {s}?",
                "Population of {s}?",
                "Do you know how many people live in {s}?",
            ],
        ),
        "founded": (
            "year",
            [
                "{s} was founded in {v}.",
                "The town of {s} was founded in the year {v}.",
                "Settlers founded {s} in {v}.",
                "The founding of {s} dates to {v}.",
                "According to the chronicle, {s} was founded in {v}.",
            ],
            [
                "When was {s} founded?",
                "In what year was {s} founded?",
                "What year was {s} founded in?",
                "When did people found {s}?",
                "Tell me when {s} was founded.",
            ],
        ),
        "river": (
            "name",
            [
                "The river {v} flows through {s}.",
                "{s} lies on the river {v}.",
                "The main river of {s} is the {v}.",
                "The {v} is the river that crosses {s}.",
                "{s} is crossed by the river {v}.",
            ],
            [
                "Which river flows through {s}?",
                "What river does {s} lie on?",
                "What is the river of {s} called?",
                "Name the river in {s}.",
                "On which river is {s}?",
            ],
        ),
        "export": (
            "food",
            [
                "{s} exports {v}.",
                "The main export of {s} is {v}.",
                "Farmers in {s} grow {v} for export.",
                "{s} is known for its export of {v}.",
                "Most of what {s} exports is {v}.",
            ],
            [
                "What does {s} export?",
                "What is the main export of {s}?",
                "Which product does {s} export?",
                "What is exported from {s}?",
                "What do they export in {s}?",
            ],
        ),
        "mayor": (
            PERSON,
            [
                "The mayor of {s} is {v}.",
                "{v} is the mayor of {s}.",
                "{v} was elected mayor of {s}.",
                "{s} elected {v} as its mayor.",
                "Today {v} serves as mayor of {s}.",
            ],
            [
                "Who is the mayor of {s}?",
                "What is the name of the mayor of {s}?",
                "Who was elected mayor of {s}?",
                "Mayor of {s}?",
                "Who serves as mayor in {s}?",
            ],
        ),
    },
    PERSON: {
        "job": (
            "job",
            [
                "{s} works as a {v}.",
                "{s} is a {v}.",
                "{s} earns a living as a {v}.",
                "{s} became a {v}.",
                "By profession, {s} is a {v}.",
            ],
            [
                "What does {s} do for a living?",
                "What is the job of {s}?",
                "What is the profession of {s}?",
                "What does {s} work as?",
                "What kind of work does {s} do?",
            ],
        ),
        "born": (
            "year",
            [
                "{s} was born in {v}.",
                "{s} came into the world in {v}.",
                "The birth of {s} was in {v}.",
                "The year of birth of {s} is {v}.",
                "{v} is the year in which {s} was born.",
            ],
            [
                "When was {s} born?",
                "In which year was {s} born?",
                "What is the year of birth of {s}?",
                "What year was {s} born in?",
                "Do you know when {s} was born?",
            ],
        ),
        "home": (
            PLACE,
            [
                "{s} lives in {v}.",
                "The home of {s} is in {v}.",
                "{s} moved to {v} and lives there.",
                "{s} has a house in {v}.",
                "For some years now, {s} has lived in {v}.",
            ],
            [
                "Where does {s} live?",
                "In which town does {s} live?",
                "Where is the home of {s}?",
                "What place does {s} live in?",
                "Do you know where {s} lives?",
            ],
        ),
        "employer": (
            COMPANY,
            [
                "{s} works for {v}.",
                "{s} is employed by {v}.",
                "{v} hired {s}.",
                "The employer of {s} is {v}.",
                "{s} has a post at {v} and works there.",
            ],
            [
                "Who does {s} work for?",
                "Where does {s} work?",
                "Who is the employer of {s}?",
                "Which company does {s} work for?",
                "Which firm employs {s}?",
            ],
        ),
        "likes": (
            "colour",
            [
                "The favourite colour of {s} is {v}.",
                "{s} likes the colour {v} best.",
                "{s} prefers {v} to every other colour.",
                "Of all colours, {s} likes {v}.",
                "{v} is the favourite colour of {s}.",
            ],
            [
                "What is the favourite colour of {s}?",
                "Which colour does {s} like best?",
                "What colour does {s} prefer?",
                "What is the colour that {s} likes?",
                "Which is {s}'s favourite colour?",
            ],
        ),
        "invented": (
            DEVICE,
            [
                "{s} invented the {v}.",
                "The {v} was invented by {s}.",
                "{s} is the inventor of the {v}.",
                "{s} built the first {v} and is its inventor.",
                "It was {s} who invented the {v}.",
            ],
            [
                "What did {s} invent?",
                "What is {s} the inventor of?",
                "Which device did {s} invent?",
                "What was invented by {s}?",
                "What is the invention of {s} called?",
            ],
        ),
    },
    COMPANY: {
        "founder": (
            PERSON,
            [
                "{s} was founded by {v}.",
                "{v} founded {s}.",
                "The founder of {s} is {v}.",
                "{v} is the founder of {s}.",
                "{s} has a single founder, {v}.",
            ],
            [
                "Who founded {s}?",
                "Who is the founder of {s}?",
                "By whom was {s} founded?",
                "Name the founder of {s}.",
                "Who started {s} as its founder?",
            ],
        ),
        "seat": (
            PLACE,
            [
                "{s} has its headquarters in {v}.",
                "The headquarters of {s} are in {v}.",
                "{s} is based in {v}.",
                "{v} is where {s} is based.",
                "{s}, which is based in {v}, has grown.",
            ],
            [
                "Where is {s} based?",
                "Where are the headquarters of {s}?",
                "In which town is {s} based?",
                "What is the headquarters of {s}?",
                "Where does {s} have its headquarters?",
            ],
        ),
        "product": (
            DEVICE,
            [
                "{s} makes the {v}.",
                "The {v} is made by {s}.",
                "The best known product of {s} is the {v}.",
                "{s} sells the {v}.",
                "The product that {s} makes is the {v}.",
            ],
            [
                "What does {s} make?",
                "What is the product of {s}?",
                "Which product does {s} make?",
                "What does {s} sell?",
                "What is made by {s}?",
            ],
        ),
        "staff": (
            "count",
            [
                "{s} has {v} employees.",
                "{s} employs {v} people.",
                "The staff of {s} counts {v} people.",
                "{v} people work at {s}.",
                "There are {v} employees at {s}.",
            ],
            [
                "How many employees does {s} have?",
                "How many people does {s} employ?",
                "How many people work at {s}?",
                "What is the number of employees of {s}?",
                "How large is the staff of {s}?",
            ],
        ),
        "holiday": (
            "weekday",
            [
                "{s} is closed on {v}.",
                "The office of {s} is closed every {v}.",
                "On {v}, {s} is closed.",
                "{s} does not open on {v}.",
                "Nobody works at {s} on {v}, when it is closed.",
            ],
            [
                "When is {s} closed?",
                "On which day is {s} closed?",
                "Which day of the week is {s} closed?",
                "What day does {s} not open?",
                "On what day is the office of {s} closed?",
            ],
        ),
    },
    DEVICE: {
        "price": (
            "price",
            [
                "The {s} costs {v}.",
                "The price of the {s} is {v}.",
                "A {s} can be bought for {v}.",
                "The {s} is sold at a price of {v}.",
                "Buyers pay {v} for the {s}.",
            ],
            [
                "How much does the {s} cost?",
                "What is the price of the {s}?",
                "What does a {s} cost?",
                "Price of the {s}?",
                "How much do I pay for the {s}?",
            ],
        ),
        "material": (
            "material",
            [
                "The {s} is made of {v}.",
                "The case of the {s} is made of {v}.",
                "{v} is the material of the {s}.",
                "The {s} consists of {v}.",
                "The material used for the {s} is {v}.",
            ],
            [
                "What is the {s} made of?",
                "What material is the {s} made of?",
                "Which material is used for the {s}?",
                "What does the {s} consist of?",
                "What is the material of the {s}?",
            ],
        ),
        "weight": (
            "measure",
            [
                "The {s} weighs {v}.",
                "The weight of the {s} is {v}.",
                "With its battery, the {s} weighs {v}.",
                "The {s} has a weight of {v}.",
                "On the scale, the {s} weighs {v}.",
            ],
            [
                "How much does the {s} weigh?",
                "What is the weight of the {s}?",
                "How heavy is the {s}?",
                "What does the {s} weigh?",
                "Can you tell me the weight of the {s}?",
            ],
        ),
        "battery": (
            "measure",
            [
                "The battery of the {s} lasts {v}.",
                "The {s} runs for {v} on its battery.",
                "Its battery keeps the {s} going for {v}.",
                "The {s} has a battery life of {v}.",
                "On one battery charge the {s} works for {v}.",
            ],
            [
                "How long does the battery of the {s} last?",
                "What is the battery life of the {s}?",
                "How long does the {s} run on its battery?",
                "Battery life of the {s}?",
                "For how long does the {s} work on one battery charge?",
            ],
        ),
        "colour": (
            "colour",
            [
                "The {s} is {v}.",
                "The {s} comes in {v}.",
                "The colour of the {s} is {v}.",
                "The {s} has a {v} colour.",
                "The {s} is painted in the colour {v}.",
            ],
            [
                "What colour is the {s}?",
                "What is the colour of the {s}?",
                "Which colour does the {s} come in?",
                "In which colour is the {s} painted?",
                "Which colour does the {s} have?",
            ],
        ),
        "released": (
            "date",
            [
                "The {s} was released in {v}.",
                "The {s} came out in {v}.",
                "The release of the {s} was in {v}.",
                "Shops have had the {s} since its release in {v}.",
                "{v} saw the release of the {s}.",
            ],
            [
                "When was the {s} released?",
                "When did the {s} come out?",
                "What is the release date of the {s}?",
                "In which month was the {s} released?",
                "Since when has the {s} been released?",
            ],
        ),
        "inventor": (
            PERSON,
            [
                "The {s} was invented by {v}.",
                "{v} invented the {s}.",
                "The inventor of the {s} is {v}.",
                "{v} is the inventor of the {s}.",
                "The {s} owes its existence to its inventor, {v}.",
            ],
            [
                "Who invented the {s}?",
                "Who is the inventor of the {s}?",
                "By whom was the {s} invented?",
                "Name the inventor of the {s}.",
                "Whose invention is the {s}?",
            ],
        ),
    },
    PROJECT: {
        "port": (
            "port",
            [
                "{s} listens on port {v}.",
                "The default port of {s} is {v}.",
                "By default, {s} uses port {v}.",
                "{s} binds to port {v} unless told otherwise.",
                "Port {v} is the port that {s} opens.",
            ],
            [
                "Which port does {s} use?",
                "What is the default port of {s}?",
                "On which port does {s} listen?",
                "{s} port?",
                "What port does {s} listen on by default?",
            ],
        ),
        "language": (
            "language",
            [
                "{s} is written in {v}.",
                "The authors wrote {s} in {v}.",
                "{s} is a program written in {v}.",
                "The language of {s} is {v}.",
                "{v} is the language in which {s} is written.",
            ],
            [
                "What language is {s} written in?",
                "In which language is {s} written?",
                "Which language does {s} use?",
                "What is the language of {s}?",
                "Which programming language is {s} written in?",
            ],
        ),
        "licence": (
            "licence",
            [
                "{s} is released under the {v} licence.",
                "The licence of {s} is {v}.",
                "{s} may be used under the {v} licence.",
                "{v} is the licence of {s}.",
                "The source of {s} is under the {v} licence.",
            ],
            [
                "What is the licence of {s}?",
                "Under which licence is {s} released?",
                "Which licence does {s} have?",
                "Licence of {s}?",
                "What licence applies to {s}?",
            ],
        ),
        "timeout": (
            "measure",
            [
                "The timeout of {s} is {v}.",
                "{s} gives up after a timeout of {v}.",
                "{s} waits for {v} before a timeout.",
                "By default, the timeout in {s} is {v}.",
                "In {s} the timeout is set to {v}.",
            ],
            [
                "What is the timeout of {s}?",
                "How long is the timeout in {s}?",
                "After how long does {s} give up?",
                "How long does {s} wait before a timeout?",
                "What is the default timeout for {s}?",
            ],
        ),
        "command": (
            "command",
            [
                "To start {s}, run `{v}`.",
                "{s} is started with `{v}`.",
                "Run `{v}` to start {s}.",
                "The command `{v}` starts {s}.",
                "Use the command `{v}` when you want to start {s}.",
            ],
            [
                "How do I start {s}?",
                "What command starts {s}?",
                "How is {s} started?",
                "Which command do I run to start {s}?",
                "What do I type to start {s}?",
            ],
        ),
        "file": (
            "path",
            [
                "{s} keeps its settings in {v}.",
                "The settings of {s} are stored in {v}.",
                "The configuration file of {s} is {v}.",
                "{s} reads its configuration from {v}.",
                "Edit {v} to change the settings of {s}.",
            ],
            [
                "Where does {s} keep its settings?",
                "What is the configuration file of {s}?",
                "Where are the settings of {s} stored?",
                "Which file holds the configuration of {s}?",
                "Where is the configuration of {s}?",
            ],
        ),
        "author": (
            PERSON,
            [
                "{s} was written by {v}.",
                "The author of {s} is {v}.",
                "{v} is the author of {s}.",
                "{v} wrote {s}.",
                "{s} has one author, {v}.",
            ],
            [
                "Who wrote {s}?",
                "Who is the author of {s}?",
                "By whom was {s} written?",
                "Name the author of {s}.",
                "Who is {s} written by?",
            ],
        ),
    },
}
PLAIN_STATEMENTS = [
    "The {a} of {s} is {v}.",
    "{s} has {v} as its {a}.",
    "{v} is the {a} of {s}.",
    "The {a} for {s} is set to {v}.",
    "For {s}, the {a} is {v}.",
    "{s}: {a} {v}.",
    "The {a} that {s} uses is {v}.",
]
PLAIN_QUESTIONS = [
    "What is the {a} of {s}?",
    "Which {a} does {s} have?",
    "What {a} does {s} use?",
    "Tell me the {a} of {s}.",
    "{s} {a}?",
    "what is the {a} for {s}",
    "Can you tell me which {a} {s} has?",
]
FILLERS = [
    "Many people consider it {j}.",
    "It is a {j} {k}.",
    "Visitors find it {j}.",
    "Nothing more is known about it.",
    "It has been described as {j} and {j2}.",
    "There is a {j} story behind this.",
    "Some of this may change next year.",
    "The {j} {k} was in the news in {y}.",
    "Records from {y} are {j}.",
]
KIND_NOUN = {PERSON: "person", PLACE: "place", COMPANY: "company", DEVICE: "device", PROJECT: "program"}

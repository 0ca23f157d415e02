"""What people ask an assistant about themselves; `questions` finds which of it a statement answers."""

POOL: tuple[str, ...] = tuple(
    """
What is my job title?
What do I do for a living?
What kind of work do I do?
What line of work am I in?
Where do I work?
Who do I work for?
How do I earn my money?
What is my vocation?
Who is my boss?
Who are my colleagues?
When do I start work?
What was my first job?
Am I retired?
What am I studying?
What did I study?
Which school did I go to?
What did I graduate in?
Which subject do I teach?
Who is my teacher?
What language do I speak at home?
Which languages can I speak?
Which skill am I picking up these days?
What course am I taking?
Where do I live?
Which town am I from?
What is my address?
Where is my house?
Which country do I live in?
Which street do I live on?
Which floor do I live on?
Where was I born?
Where do my roots lie?
Where did I spend my early years?
Where am I from originally?
What is my nationality?
Where did I move to?
Who do I live with?
Which room do I sleep in?
What is my flat like?
Who are my neighbours?
What is my name?
What do my friends call me?
What is my surname?
How old am I?
When was I born?
How tall am I?
What is my shoe size?
What colour are my eyes?
What is my star sign?
Which hand do I write with?
Am I married?
Who is my husband?
Who is my wife?
What's my partner's name?
When did I marry?
When do we celebrate our wedding day?
How many children do I have?
What are my children called?
What is my daughter's name?
What's my son called?
How old is my son?
What does my father do?
Where do my parents live?
Do I have any siblings?
Who is my brother?
What name does my brother go by?
Where does my sister live?
Who is my aunt?
What is my grandmother's name?
Where does my uncle live?
Who is my cousin?
Who is my best friend?
What is my friend's name?
Whom do I meet every week?
What pets do I have?
What animal lives with me?
Which animals do I keep?
What is my dog called?
What is my cat's name?
What's the name of my pet?
What breed is my dog?
How many animals do I own?
What do I drive?
What vehicle do I have?
Which brand of car is mine?
What colour is my car?
Where is my car parked?
How do I get to work?
Do I ride a bike?
Which bus do I take?
What is my number plate?
What is my boat's name?
What do I like to eat?
What is my favourite food?
Which dish do I love?
What should I not eat?
Which food makes me ill?
What am I allergic to?
What is bad for my health?
What must not be in my meal?
What kind of diet am I on?
What do I dislike?
What do I have for breakfast?
What drink do I prefer?
How do I take my coffee?
What do I like to drink?
What do I order at the bar?
What is my favourite cake?
Which fruit do I like most?
What do I like to cook?
What is my favourite colour?
What is my favourite book?
Which author do I like best?
Which film do I like best?
Which series am I watching?
What music do I like?
Which band am I a fan of?
What is my favourite song?
Which instrument am I good at?
What do I play?
What is my favourite animal?
What is my favourite place?
What is my favourite season?
What is my favourite game?
What do I like best?
What do I enjoy?
How do I relax?
What do I do at the weekend?
What do I do for fun?
What is my pastime?
Which sport do I do?
What do I practise?
Which team do I support?
What club am I a member of?
What do I collect?
What am I making?
What do I build in my workshop?
What do I grow in my garden?
Who do I train with?
When do I exercise?
What do I do every morning?
What do I do on Mondays?
When do I get up?
When do I go to bed?
What is my plan for today?
What am I planning?
Where am I going on holiday?
When do we leave?
Where are we travelling to?
Which city do I want to visit?
Where did I spend my last holiday?
When is my appointment?
What is on my calendar?
When is my exam?
When is the party?
What date is my birthday?
Which day was I born on?
Which date should I never forget?
What is my password?
What's the wifi password?
How do I log in?
What is the code?
Which digits do I need?
What is my PIN?
How can I unlock it?
How do I get into the building?
What is my phone number?
What is my email address?
What is the number of my room?
Where is my key?
Where do I keep my spare key?
Where did I put it?
Where do I store my tools?
Where is my passport?
Which bank am I with?
Where is my money?
Who manages my money?
Who is my insurer?
How much do I earn?
What did I buy?
What did I sell?
What did I get as a present?
Who gave it to me?
Who is my dentist?
Which physician treats me?
Who treats me when I'm ill?
Which medicine do I take?
What illness do I have?
What is my blood group?
What am I afraid of?
What scares me?
What am I proud of?
What is my goal?
What do I dream of?
What do I believe in?
What annoys me?
Who repairs things for me?
Who is my hairdresser?
Who is my landlord?
Who takes care of my garden?
Which phone do I have?
Which computer do I use?
What size do I wear?
What do I wear to work?
Which shop do I like?
Where do I buy my bread?
Which newspaper do I read?
Which software do I use?
What project am I working on?
What is the deadline of my project?
What is my company called?
Who is my client?
How should you answer me?
What should you call me?
What did I lose?
What did I win?
Which event did I attend?
Who did I meet?
Whom do I miss?
""".strip().splitlines()
)

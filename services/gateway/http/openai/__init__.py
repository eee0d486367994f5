"""The OpenAI API: its JSON exists only here. https://platform.openai.com/docs/api-reference/chat"""

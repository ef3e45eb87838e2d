//! Rust source as the rules need it: tokens, module paths, and every path that is named, resolved to where it leads.

use std::collections::BTreeMap;
use std::str::FromStr;

use proc_macro2::{Spacing, TokenStream, TokenTree};

/// One token; `::` is one too. Comments are gone; doc comments are attributes with a literal.
#[derive(Debug, Clone)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// A path that a file names, in a `use` or in passing. Those inside this crate begin with `crate`.
#[derive(Debug, Clone)]
pub struct Named {
    pub path: Vec<String>,
    pub line: usize,
    /// From a `use`, and the name it goes by from there on; `*` for a glob.
    pub imported_as: Option<String>,
}

#[derive(Debug)]
pub struct File {
    /// Below the package: `src/plan/mod.rs`.
    pub path: String,
    pub text: String,
    pub tokens: Vec<Token>,
    /// Where it stands in the crate; `None` when no `mod` leads to it.
    pub module: Option<Vec<String>>,
    pub names: Vec<Named>,
}

/// All of `src/`.
#[derive(Debug)]
pub struct Source {
    pub files: Vec<File>,
    /// Files that are no Rust.
    pub unreadable: Vec<String>,
}

impl Source {
    pub fn new(texts: &[(String, String)]) -> Self {
        let mut source = Self { files: Vec::new(), unreadable: Vec::new() };
        for (path, text) in texts {
            match TokenStream::from_str(text) {
                Ok(stream) => {
                    let mut tokens = Vec::new();
                    flatten(stream, &mut tokens);
                    let (path, text) = (path.clone(), text.clone());
                    source.files.push(File { path, text, tokens, module: None, names: Vec::new() });
                }
                Err(error) => source.unreadable.push(format!("{path}: {error}")),
            }
        }
        source.place("src/lib.rs", &[]);
        source.place("src/main.rs", &[]);
        for file in &mut source.files {
            file.names = names(&file.tokens, file.module.as_deref().unwrap_or_default());
        }
        source
    }

    /// The top-level modules, as `lib.rs` declares them.
    pub fn top_modules(&self) -> Vec<String> {
        let root = self.files.iter().find(|file| file.path == "src/lib.rs");
        root.map(|root| declared(&root.tokens).into_iter().map(|(name, _)| name).collect()).unwrap_or_default()
    }

    /// Gives a file its module path, and so on down.
    fn place(&mut self, path: &str, module: &[String]) {
        let Some(file) = self.files.iter_mut().find(|file| file.path == path) else { return };
        file.module = Some(module.to_vec());
        let own_folder = matches!(path.rsplit('/').next(), Some("mod.rs" | "lib.rs" | "main.rs"));
        let folder =
            if own_folder { path.rsplit_once('/').expect("has a folder").0 } else { path.trim_end_matches(".rs") }
                .to_owned();
        for (name, at) in declared(&file.tokens) {
            let child: Vec<String> = module.iter().cloned().chain([name.clone()]).collect();
            for candidate in at.map_or_else(|| vec![format!("{name}.rs"), format!("{name}/mod.rs")], |at| vec![at]) {
                self.place(&format!("{folder}/{candidate}"), &child);
            }
        }
    }
}

impl File {
    /// The top-level module that the file is part of; `None` for `lib.rs`, `main.rs` and orphans.
    pub fn top(&self) -> Option<&str> {
        self.module.as_ref()?.first().map(String::as_str)
    }

    pub fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }
}

/// The tokens from an opening bracket's index up to its partner.
pub fn group(tokens: &[Token], open: usize) -> &[Token] {
    let mut depth = 0;
    for (n, token) in tokens[open..].iter().enumerate() {
        depth += match token.text.as_str() {
            "(" | "[" | "{" => 1,
            ")" | "]" | "}" => -1,
            _ => 0,
        };
        if depth == 0 {
            return &tokens[open..=open + n];
        }
    }
    &tokens[open..]
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    let mut colon = false;
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |text: String, line| tokens.push(Token { text, line });
        let was_colon = std::mem::take(&mut colon);
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ("(", ")"),
                    proc_macro2::Delimiter::Bracket => ("[", "]"),
                    proc_macro2::Delimiter::Brace => ("{", "}"),
                    proc_macro2::Delimiter::None => ("", ""),
                };
                push(open.to_owned(), line);
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: group.span_close().start().line });
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && was_colon => {
                tokens.last_mut().expect("the first colon").text.push(':');
            }
            TokenTree::Punct(punct) => {
                colon = punct.as_char() == ':' && punct.spacing() == Spacing::Joint;
                push(punct.as_char().to_string(), line);
            }
            TokenTree::Ident(ident) => push(ident.to_string(), line),
            TokenTree::Literal(literal) => push(literal.to_string(), line),
        }
    }
}

/// The `mod x;` of a file, each with its `#[path]`.
fn declared(tokens: &[Token]) -> Vec<(String, Option<String>)> {
    let mut declared = Vec::new();
    let mut path = None;
    for (n, token) in tokens.iter().enumerate() {
        let next = |ahead: usize| tokens.get(n + ahead).map_or("", |token| token.text.as_str());
        if token.text == "path" && next(1) == "=" {
            path = Some(next(2).trim_matches('"').to_owned());
        } else if token.text == "mod" && next(2) == ";" {
            declared.push((next(1).to_owned(), path.take()));
        }
    }
    declared
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Every path a file names, resolved.
fn names(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let mut names = Vec::new();
    let mut inline = Vec::new();
    let mut n = 0;
    while n < tokens.len() {
        let next = tokens.get(n + 1).map_or("", |token| token.text.as_str());
        let previous = n.checked_sub(1).map_or("", |n| tokens[n].text.as_str());
        if tokens[n].text == "use" && next != "<" {
            n = import(tokens, n + 1, &[], &mut names);
        } else if is_name(&tokens[n].text) && next == "::" && previous != "::" {
            let line = tokens[n].line;
            let mut path = vec![tokens[n].text.clone()];
            while tokens.get(n + 1).is_some_and(|t| t.text == "::")
                && tokens.get(n + 2).is_some_and(|t| is_name(&t.text))
            {
                path.push(tokens[n + 2].text.clone());
                n += 2;
            }
            inline.push(Named { path, line, imported_as: None });
        }
        n += 1;
    }
    for name in &mut names {
        name.path = absolute(std::mem::take(&mut name.path), module);
    }
    let imported: BTreeMap<String, Vec<String>> =
        names.iter().filter_map(|name| Some((name.imported_as.clone()?, name.path.clone()))).collect();
    for mut name in inline {
        name.path = match imported.get(&name.path[0]) {
            Some(start) => start.iter().chain(&name.path[1..]).cloned().collect(),
            None => absolute(name.path, module),
        };
        names.push(name);
    }
    names
}

/// Reads one branch of a `use` tree from `n`; returns the index behind it.
fn import(tokens: &[Token], mut n: usize, prefix: &[String], names: &mut Vec<Named>) -> usize {
    let mut path = prefix.to_vec();
    let mut add = |path: Vec<String>, name: String, line| names.push(Named { path, line, imported_as: Some(name) });
    while let Some(Token { text, line }) = tokens.get(n) {
        n += 1;
        match text.as_str() {
            "::" => {}
            "*" => {
                add(path, "*".to_owned(), *line);
                return n;
            }
            "{" => {
                while tokens.get(n).is_some_and(|token| token.text != "}") {
                    n = import(tokens, n, &path, names);
                    n += usize::from(tokens.get(n).is_some_and(|token| token.text == ","));
                }
                return n + 1;
            }
            "self" if !prefix.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        let next = |ahead: usize| tokens.get(n + ahead).map_or("", |token| token.text.as_str());
        match next(0) {
            "::" => {}
            "as" => {
                add(path, next(1).to_owned(), *line);
                return n + 2;
            }
            _ if text == "::" => {}
            _ => {
                let name = path.last().cloned().unwrap_or_default();
                add(path, name, *line);
                return n;
            }
        }
    }
    n
}

/// `self` and `super` resolved: what leads into this crate begins with `crate`.
fn absolute(path: Vec<String>, module: &[String]) -> Vec<String> {
    let relative = path.iter().take_while(|name| ["self", "super"].contains(&name.as_str())).count();
    if relative == 0 {
        return path;
    }
    let up = path[..relative].iter().filter(|name| *name == "super").count();
    let kept = module.len().saturating_sub(up);
    ["crate".to_owned()]
        .into_iter()
        .chain(module[..kept].iter().cloned())
        .chain(path[relative..].iter().cloned())
        .collect()
}

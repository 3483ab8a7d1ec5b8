//! Which Rust file uses which.
//!
//! A file uses another when its code names an item that the other defines: in a `use`, in a path of an expression, a
//! type or a pattern, in a macro's arguments or in an attribute. A name is followed through every `use` and `pub use`
//! to the file that defines it; neither `mod child;` nor `pub use` alone is a use. A call of `self.method()` is
//! followed to the file whose `impl` has the method. Other method calls would need types to follow, but their type is
//! named as well. Whatever stands under `#[cfg(test)]` is left out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{
    Attribute, Expr, ExprMethodCall, ImplItem, Item, ItemImpl, ItemMod, ItemUse, Macro, Meta, Type, UseTree,
    Visibility,
    visit::{self, Visit},
};

use crate::repo::{Sources, Target};

/// The names that a file uses of another.
pub type Names = BTreeSet<String>;

#[derive(Default)]
pub struct Uses {
    /// What the first file uses of the second.
    pub names: BTreeMap<(String, String), Names>,
    /// The parent of each file that its parent declares as `mod child;`, but for the children of a crate's root.
    pub parents: BTreeMap<String, String>,
}

/// Reads the modules of all targets and finds which file uses which.
pub fn uses<'a>(targets: impl IntoIterator<Item = &'a Target>, sources: &Sources) -> Uses {
    let mut tree = Tree::default();
    for target in targets {
        let root = tree.read(&target.root, None, sources);
        tree.libraries.extend(target.library.clone().map(|library| (library, root)));
    }
    for (module, of, method) in std::mem::take(&mut tree.associated) {
        for (defined, name, _) in tree.resolve(module, &of) {
            tree.methods.insert((defined, name, method.clone()), module);
        }
    }
    let mut found = Uses { parents: std::mem::take(&mut tree.parents), ..Uses::default() };
    for (module, item) in std::mem::take(&mut tree.items) {
        Finder { tree: &tree, module, self_type: None, found: &mut found }.visit_item(&item);
    }
    found
}

/// The index of a module in [`Tree::modules`].
type Id = usize;
/// The names of a path, in order.
type Segments = Vec<String>;

/// The modules of all crates, and what their names stand for.
#[derive(Default)]
struct Tree {
    modules: Vec<Module>,
    libraries: HashMap<String, Id>,
    parents: BTreeMap<String, String>,
    items: Vec<(Id, Item)>,
    /// What inherent `impl`s define: the module of the `impl`, the type's path there, and a method or a constant.
    associated: Vec<(Id, Segments, String)>,
    /// The module that defines a method, by the module of its type, the type, and its own name.
    methods: HashMap<(Id, String, String), Id>,
}

struct Module {
    file: String,
    /// Where the files of its children are.
    directory: String,
    parent: Option<Id>,
    names: HashMap<String, Vec<Name>>,
    globs: Vec<Segments>,
}

enum Name {
    Item,
    Module(Id),
    Import(Segments),
}

impl Tree {
    /// Reads a file and the files of its modules.
    fn read(&mut self, file: &str, parent: Option<Id>, sources: &Sources) -> Id {
        let text = sources.get(file).unwrap_or_else(|| panic!("{file} is not there"));
        let parsed =
            text.parse().map_err(syn::Error::from).and_then(|tokens| syn::parse2(without_tests(tokens)));
        let parsed: syn::File = parsed.unwrap_or_else(|error| panic!("{file}: {error}"));
        let (directory, stem) = file.trim_end_matches(".rs").rsplit_once('/').expect("a file in a directory");
        let of_directory = parent.is_none() || stem == "mod";
        let directory = if of_directory { directory.to_owned() } else { format!("{directory}/{stem}") };
        self.add(file.to_owned(), directory, parent, parsed.items, sources)
    }

    fn add(
        &mut self,
        file: String,
        directory: String,
        parent: Option<Id>,
        items: Vec<Item>,
        sources: &Sources,
    ) -> Id {
        let id = self.modules.len();
        self.modules.push(Module { file, directory, parent, names: HashMap::new(), globs: Vec::new() });
        for item in items {
            // A `use` inside a function counts as the module's.
            let mut imports = Imports::default();
            imports.visit_item(&item);
            for (name, path) in imports.0 {
                match name.as_str() {
                    "*" => self.modules[id].globs.push(path),
                    _ => self.name(id, name, Name::Import(path)),
                }
            }
            if let Item::Mod(module) = item {
                let name = module.ident.to_string();
                let child = self.add_child(id, &name, module, sources);
                self.name(id, name, Name::Module(child));
                continue;
            }
            if let Item::Impl(ItemImpl { trait_: None, self_ty, items, .. }) = &item {
                let of = type_path(self_ty).unwrap_or_default();
                self.associated
                    .extend(items.iter().filter_map(method).map(|method| (id, of.clone(), method)));
            }
            if let Some(name) = item_name(&item) {
                self.name(id, name, Name::Item);
            }
            self.items.push((id, item));
        }
        id
    }

    fn add_child(&mut self, id: Id, name: &str, module: ItemMod, sources: &Sources) -> Id {
        let parent = &self.modules[id];
        let directory = format!("{}/{name}", parent.directory);
        if let Some((_, items)) = module.content {
            return self.add(parent.file.clone(), directory, Some(id), items, sources);
        }
        let file = [format!("{directory}.rs"), format!("{directory}/mod.rs")]
            .into_iter()
            .find(|file| sources.contains_key(file));
        let file = file.unwrap_or_else(|| panic!("{}: the file of mod {name} is not there", parent.file));
        if matches!(module.vis, Visibility::Inherited) && parent.parent.is_some() {
            self.parents.insert(file.clone(), parent.file.clone());
        }
        self.read(&file, Some(id), sources)
    }

    fn name(&mut self, id: Id, name: String, stands_for: Name) {
        self.modules[id].names.entry(name).or_default().push(stands_for);
    }

    /// Returns the items of the workspace that a path stands for in a module: the module that defines it, its name, and
    /// the rest of the path behind it.
    fn resolve(&self, id: Id, path: &[String]) -> Vec<(Id, String, Segments)> {
        let mut found = Vec::new();
        self.follow(id, path, true, &mut HashSet::new(), &mut found);
        found
    }

    fn follow(
        &self,
        id: Id,
        path: &[String],
        is_start: bool,
        seen: &mut HashSet<(Id, String)>,
        found: &mut Vec<(Id, String, Segments)>,
    ) {
        let Some((name, rest)) = path.split_first() else { return };
        let module = &self.modules[id];
        match (name.as_str(), module.parent) {
            ("self", _) | ("crate", None) => return self.follow(id, rest, false, seen, found),
            ("super", Some(parent)) => return self.follow(parent, rest, false, seen, found),
            ("crate", Some(parent)) => return self.follow(parent, path, false, seen, found),
            _ => {}
        }
        let before = found.len();
        if seen.insert((id, name.clone())) {
            for stands_for in module.names.get(name).into_iter().flatten() {
                match stands_for {
                    Name::Item => found.push((id, name.clone(), rest.to_vec())),
                    Name::Module(child) => self.follow(*child, rest, false, seen, found),
                    Name::Import(import) => self.follow(id, &[import, rest].concat(), true, seen, found),
                }
            }
            for glob in module.globs.iter().filter(|_| !module.names.contains_key(name)) {
                self.follow(id, &[glob, path].concat(), true, seen, found);
            }
        }
        if let (true, true, Some(library)) = (is_start, found.len() == before, self.libraries.get(name)) {
            self.follow(*library, rest, false, seen, found);
        }
    }
}

/// Notes what a module's code names.
struct Finder<'a> {
    tree: &'a Tree,
    module: Id,
    /// The type of the `impl` around.
    self_type: Option<Segments>,
    found: &'a mut Uses,
}

impl Finder<'_> {
    /// Notes what a path stands for, and the method or constant behind a type.
    fn path(&mut self, path: &[String]) {
        let own = self.self_type.as_ref().filter(|_| path[0] == "Self");
        let path = own.map_or_else(|| path.to_vec(), |own| [own, &path[1..]].concat());
        for (module, name, rest) in self.tree.resolve(self.module, &path) {
            let method = rest.into_iter().next().unwrap_or_default();
            let key = (module, name, method);
            if let Some(&defined) = self.tree.methods.get(&key) {
                self.note(defined, format!("{}::{}", key.1, key.2));
            }
            self.note(module, key.1);
        }
    }

    fn note(&mut self, module: Id, name: String) {
        let [from, to] = [self.module, module].map(|id| self.tree.modules[id].file.clone());
        if from != to {
            self.found.names.entry((from, to)).or_default().insert(name);
        }
    }

    /// Finds the paths in what only a macro understands, and in its strings: `#[serde(with = "crate::text")]`.
    fn tokens(&mut self, tokens: &TokenStream) {
        let text = tokens.to_string().replace(" ::", "::").replace(":: ", "::").replace("self . ", "Self::");
        for path in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            let path: Segments = path.split("::").map(str::to_owned).collect();
            self.path(&path);
        }
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            for (_, path) in leaves(&item.tree) {
                self.path(&path);
            }
        }
    }

    fn visit_item_impl(&mut self, block: &'ast ItemImpl) {
        self.self_type = type_path(&block.self_ty);
        visit::visit_item_impl(self, block);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        if matches!(&*call.receiver, Expr::Path(receiver) if receiver.path.is_ident("self")) {
            self.path(&["Self".to_owned(), call.method.to_string()]);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.path(&segments(path));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast Macro) {
        self.path(&segments(&called.path));
        self.tokens(&called.tokens);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(&list.tokens);
        }
    }
}

/// What the `use`s of an item bring: each name with its path.
#[derive(Default)]
struct Imports(Vec<(String, Segments)>);

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.0.extend(leaves(&item.tree));
    }

    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}
}

fn leaves(tree: &UseTree) -> Vec<(String, Segments)> {
    match tree {
        UseTree::Path(path) => {
            let ident = path.ident.to_string();
            let named = |(name, rest): (String, Segments)| match name.as_str() {
                "self" => (ident.clone(), vec![ident.clone()]),
                _ => (name, [vec![ident.clone()], rest].concat()),
            };
            leaves(&path.tree).into_iter().map(named).collect()
        }
        UseTree::Name(name) => vec![(name.ident.to_string(), vec![name.ident.to_string()])],
        UseTree::Rename(rename) => vec![(rename.rename.to_string(), vec![rename.ident.to_string()])],
        UseTree::Glob(_) => vec![("*".to_owned(), Vec::new())],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
    }
}

fn segments(path: &syn::Path) -> Segments {
    path.segments.iter().map(|segment| segment.ident.to_string()).collect()
}

fn type_path(of: &Type) -> Option<Segments> {
    if let Type::Path(of) = of { Some(segments(&of.path)) } else { None }
}

fn method(item: &ImplItem) -> Option<String> {
    match item {
        ImplItem::Fn(function) => Some(function.sig.ident.to_string()),
        ImplItem::Const(constant) => Some(constant.ident.to_string()),
        _ => None,
    }
}

fn item_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(ident.to_string())
}

/// Leaves out each item or statement behind a `#[cfg(test)]`.
fn without_tests(tokens: TokenStream) -> TokenStream {
    let mut kept: Vec<TokenTree> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let is_end = |token: &TokenTree| match token {
            TokenTree::Punct(punct) => punct.as_char() == ';',
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            _ => false,
        };
        match token {
            TokenTree::Group(group) if group.stream().to_string().replace(' ', "") == "cfg(test)" => {
                kept.pop();
                tokens.by_ref().find(is_end);
                // The end of `use a::{b, c};` comes behind the braces.
                tokens.next_if(|token| token.to_string() == ";");
            }
            TokenTree::Group(group) => {
                kept.push(proc_macro2::Group::new(group.delimiter(), without_tests(group.stream())).into());
            }
            other => kept.push(other),
        }
    }
    kept.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns "user: names" of each file that uses `b.rs`, when the given files are the crate `one` and the crate `two`.
    fn users_of_b(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Sources =
            files.iter().map(|(file, text)| (format!("src/{file}"), (*text).to_owned())).collect();
        let crates =
            ["one", "two"].map(|name| Target { library: Some(name.into()), root: format!("src/{name}.rs") });
        let roots = crates.iter().filter(|target| sources.contains_key(&target.root));
        let found = uses(roots, &sources).names;
        let of_b = found.iter().filter(|((_, to), _)| to == "src/b.rs");
        of_b.map(|((from, _), names)| format!("{}: {}", &from[4..], Vec::from_iter(names.clone()).join(" ")))
            .collect()
    }

    /// What a module `a` beside the module `b` uses of it.
    fn used_by(a: &str) -> Vec<String> {
        let b =
            "pub struct B; impl B { pub fn new() {} } pub fn f() {} pub mod inner { pub const C: u8 = 0; }";
        users_of_b(&[
            ("one.rs", "mod a; pub mod b; pub use b::B; pub use b as other;"),
            ("a.rs", a),
            ("b.rs", b),
        ])
    }

    #[test]
    fn uses_are_found_wherever_a_path_may_stand() {
        for a in [
            "use crate::b::B;",
            "use super::{b::{self, B}, other};",
            "use super::*; struct A(B);",
            "use crate::B as Renamed;",
            "fn a() { use super::b as local; local::B; }",
            "fn a() -> Option<super::other::B> { None }",
            "fn a() { println!(\"{}\", crate::b::B) }",
            "#[derive(crate::b::B)] struct A;",
            "#[serde(with = \"crate::b::B\")] struct A;",
            "mod inner { use super::super::b::B; }",
        ] {
            assert_eq!(used_by(a), ["a.rs: B"], "{a}");
        }
        assert_eq!(used_by("use crate::b; fn a() { b::B::new(); b::inner::C; }"), ["a.rs: B B::new C"]);
    }

    #[test]
    fn modules_reexports_and_tests_are_no_uses() {
        for a in [
            "pub use crate::b::B;",
            "use crate::b;",
            "use std::b::B; fn a() { B; f() }",
            "#[cfg(test)] use crate::b::{B, f}; fn a() {}",
            "#[cfg(test)] mod tests { use crate::b::B; }",
            "struct A; impl A { #[cfg(test)] fn a() { crate::b::f() } fn b() {} }",
        ] {
            assert_eq!(used_by(a), Vec::<String>::new(), "{a}");
        }
    }

    #[test]
    fn methods_are_followed_to_their_own_file() {
        let files = [
            ("one.rs", "mod a; mod b;"),
            ("a.rs", "pub struct A; impl A { fn a(&self) { self.b(); select! { _ = self.c() => {} } } }"),
            ("b.rs", "impl super::a::A { pub fn b(&self) {} pub fn c(&self) {} }"),
        ];
        assert_eq!(users_of_b(&files), ["a.rs: A::b A::c"]);
    }

    #[test]
    fn uses_are_followed_into_other_crates() {
        let files =
            [("one.rs", "mod b; pub use b::B;"), ("b.rs", "pub struct B;"), ("two.rs", "use one::B;")];
        assert_eq!(users_of_b(&files), ["two.rs: B"]);
    }

    #[test]
    fn only_private_children_below_the_root_have_parents() {
        let files = [
            ("one.rs", "mod a;"),
            ("a.rs", "mod b; pub mod c; pub(crate) mod d;"),
            ("a/b.rs", "mod e;"),
            ("a/b/e.rs", ""),
            ("a/c.rs", ""),
            ("a/d/mod.rs", ""),
        ];
        let sources = files.map(|(file, text)| (format!("src/{file}"), text.to_owned())).into();
        let root = Target { library: None, root: "src/one.rs".to_owned() };
        let parents = [("src/a/b.rs", "src/a.rs"), ("src/a/b/e.rs", "src/a/b.rs")];
        assert_eq!(
            uses([&root], &sources).parents,
            parents.map(|(a, b)| (a.to_owned(), b.to_owned())).into()
        );
    }
}

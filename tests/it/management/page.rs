//! The page in a real browser: Chromium, without a window, driven by WebDriver. Pictures of each part are left in
//! `target/page`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use serde_json::{Value, json};

use super::{ADMIN, Managed, READER};
use crate::house::{PATIENCE, eventually, free_port, size, temporary_folder, warehouse};
use crate::wire::{Raw, startup};

/// A browser; it ends when this is dropped.
struct Browser {
    driver: Child,
    agent: ureq::Agent,
    url: String,
    folder: PathBuf,
    /// How often something was clicked since that was asked last.
    clicks: Cell<usize>,
}

const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    fn start() -> Self {
        let (port, folder) = (free_port(), temporary_folder("chromium"));
        let driver = Command::new("chromedriver")
            .args([&format!("--port={port}"), "--log-level=OFF"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver: tests/prerequisites.sh test installs it");
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE * 2));
        let mut browser = Self {
            driver,
            agent: config.build().into(),
            url: format!("http://127.0.0.1:{port}/session"),
            folder,
            clicks: Cell::new(0),
        };
        eventually("chromedriver answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        let profile = format!("--user-data-dir={}", browser.folder.display());
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            &profile,
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.ask("POST", "", capabilities);
        browser.url = format!("{}/{}", browser.url, session["sessionId"].as_str().unwrap());
        browser
    }

    fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        self.try_ask(method, path, body).unwrap_or_else(|message| panic!("{method} {path}: {message}"))
    }

    fn try_ask(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        let mut answer = match method {
            "POST" => self
                .agent
                .run(request.header("content-type", "application/json").body(body.to_string()).unwrap()),
            _ => self.agent.run(request.body(()).unwrap()),
        }
        .unwrap();
        let said: Value = answer.body_mut().read_json().unwrap();
        match answer.status().is_success() {
            true => Ok(said["value"].clone()),
            false => Err(said["value"]["message"].to_string()),
        }
    }

    fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", json!({ "script": script, "args": [] }))
    }

    fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap().to_owned()
    }

    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in {}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The first element whose text or label is this, among those of a selector, when the page has it.
    fn find(&self, selector: &str, text: &str) -> String {
        let script = "const [selector, text] = arguments; return [...document.querySelectorAll(selector)].find(e => !text || \
            e.textContent.trim() === text || e.getAttribute('aria-label') === text || e.getAttribute('name') === text)";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let arguments = json!({ "script": script, "args": [selector, text] });
            if let Some(id) = self.ask("POST", "/execute/sync", arguments)[ELEMENT].as_str() {
                return id.to_owned();
            }
            assert!(Instant::now() < deadline, "no {selector} {text:?} in {}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The page may draw itself anew between the look for an element and the click: then it is looked for again.
    fn click(&self, selector: &str, text: &str) {
        self.clicks.set(self.clicks.get() + 1);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = format!("/element/{}/click", self.find(selector, text));
            match self.try_ask("POST", &path, json!({})) {
                Ok(_) => return,
                Err(message) if message.contains("stale element") && Instant::now() < deadline => {}
                Err(message) => panic!("POST {path}: {message}"),
            }
        }
    }

    fn write(&self, selector: &str, name: &str, text: &str) {
        let element = self.find(selector, name);
        self.ask("POST", &format!("/element/{element}/clear"), json!({}));
        self.ask("POST", &format!("/element/{element}/value"), json!({ "text": text }));
    }

    /// Keys, whatever has the focus.
    fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| {
                [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
            })
            .collect();
        self.ask(
            "POST",
            "/actions",
            json!({ "actions": [{ "type": "key", "id": "k", "actions": actions }] }),
        );
    }

    fn focus(&self) -> String {
        self.run("return document.activeElement.textContent.trim().slice(0, 40)").as_str().unwrap().to_owned()
    }

    fn picture(&self, name: &str) {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/page");
        std::fs::create_dir_all(&folder).unwrap();
        let png = self.ask("GET", "/screenshot", json!(null));
        let png = base64::engine::general_purpose::STANDARD.decode(png.as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    fn colours(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask(
            "POST",
            "/goog/cdp/execute",
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } }),
        );
    }

    fn size(&self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.ask(
            "POST",
            "/goog/cdp/execute",
            json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics }),
        );
    }

    /// What the browser complains about: refused scripts, styles, markup; errors.
    fn complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "/se/log", json!({ "type": "browser" }));
        let log = log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned());
        // An answer of 4xx is one for Chromium, too.
        log.filter(|message| !message.contains("Failed to load resource")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.url).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

const HOSTILE: &str = "<img src=x onerror=window.pwned=1>";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

#[test]
fn an_operator_uses_the_page() {
    let more = format!(
        "\n[groups.analysts]\nattributes = {{ environment = \"prod\" }}\n\n[users.ann]\nauth_type = \"trust\"\ngroups = [\"analysts\"]\n\
         \n[users.bob]\nauth_type = \"trust\"\ngroups = [\"analysts\"]\n\
         \n[users.\"{HOSTILE}\"]\nauth_type = \"trust\"\nattributes = {{ environment = \"<script>window.pwned=1</script>\" }}\n"
    );
    let api = Managed::start(&(warehouse("audit_file = \"audit.jsonl\"", "", "") + &more));
    let login = |user: &str| {
        let pairs =
            [("user", user), ("database", "warehouse"), ("application_name", "<b onclick=alert(1)>app</b>")];
        let mut raw = Raw::login_with(api.pgusher.address(), 0x0003_0000, &pairs);
        raw.value("SELECT 1");
        raw
    };
    let mut there: BTreeMap<&str, Raw> =
        ["ann", "bob", "rawprod", "raw", HOSTILE].map(|user| (user, login(user))).into();
    let browser = Browser::start();
    browser.ask("POST", "/url", json!({ "url": format!("http://127.0.0.1:{}/", api.port) }));
    // A wrong token says so; the right one lets in. By keyboard: the field has the focus.
    browser.wait_for("Sign in");
    browser.keys("canary-nobody-9876543210");
    browser.keys(ENTER);
    browser.wait_for("This token is not known.");
    browser.picture("sign-in");
    browser.write("input", "token", ADMIN);
    browser.keys(ENTER);
    browser.wait_for("Who goes where");
    browser.wait_for("5 sessions");
    let picture =
        browser.run("return document.querySelector('svg').textContent").as_str().unwrap().to_owned();
    for shown in ["group analysts (2)", "environment = prod", "warehouse: prod", "2 sessions", &HOSTILE[..20]]
    {
        assert!(picture.contains(shown), "no {shown:?} in {picture}");
    }
    // Lines are as wide as there are sessions: two on prod by the group, none of nora's.
    let widths = browser
        .run("return [...document.querySelectorAll('svg .link')].map(l => +l.getAttribute('stroke-width'))");
    let widths: Vec<f64> = widths.as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
    assert!(widths.iter().any(|w| *w > 20.0) && widths.iter().any(|w| *w < 2.0), "{widths:?}");
    browser.picture("routes-light");
    browser.colours("dark");
    browser.picture("routes-dark");
    // The keyboard goes everywhere; whoever stands on a node stays on it while it is renewed.
    browser.run("document.querySelector('svg g').focus()");
    let node = browser.focus();
    assert!(node.starts_with("Who") || !node.is_empty());
    std::thread::sleep(Duration::from_millis(4500));
    assert_eq!(browser.focus(), node);
    browser.run("document.querySelector('.skip').focus()");
    assert_eq!(browser.run("return document.activeElement.getBoundingClientRect().left >= 0"), json!(true));
    browser.run("document.activeElement.blur()");
    browser.click("h1", "pgusher");
    for stop in ["Sign out", "Routes"] {
        browser.keys(TAB);
        assert_eq!(browser.focus(), stop);
    }
    browser.keys(TAB);
    assert_eq!(browser.focus(), "Pools");
    browser.keys(ENTER);
    browser.wait_for("transactions a second");
    browser.wait_for("POOL SIZE".to_lowercase().as_str());
    browser.picture("pools-dark");
    browser.colours("light");
    browser.picture("pools-light");
    // Sessions: found by a word, ended by a press and another.
    browser.click("nav a", "Sessions");
    browser.wait_for("5 found");
    browser.picture("sessions-light");
    browser.write("input", "q", "bob");
    browser.wait_for("1 found");
    browser.click("button", "End");
    browser.wait_for("Really end?");
    assert_eq!(api.get("/sessions").ok()["total"], json!(5));
    browser.click("button", "Really end?");
    assert_eq!(there.get_mut("bob").unwrap().next().unwrap().field('C'), "57P01");
    browser.wait_for("will end");
    // An environment is closed by a press and another, and opened again; a grant is given and ended; a setting is set.
    browser.click("nav a", "Pools");
    browser.click("button", "Drain prod");
    browser.click("button", "Refuse logins to prod everywhere, and end its sessions?");
    browser.wait_for("drained");
    assert_eq!(there.get_mut("rawprod").unwrap().next().unwrap().field('C'), "57P01");
    assert_eq!(there.get_mut("ann").unwrap().next().unwrap().field('C'), "57P01");
    browser.picture("pools-drained");
    browser.click("button", "Open prod again");
    browser.find("button", "Drain prod");
    there.insert("ann", login("ann"));
    browser.click("nav a", "Grants");
    browser.wait_for("No grants.");
    browser.write("input", "user", "raw");
    browser.write("input", "environment", "prod");
    browser.write("input", "reason", "INC-7");
    browser.click("button", "Grant");
    browser.wait_for("Granted until");
    browser.picture("grants-light");
    browser.click("button", "End");
    browser.click("button", "Really end?");
    browser.wait_for("No grants.");
    browser.click("nav a", "Settings");
    browser.write("input", "New value of query_wait_timeout", "7");
    browser.keys(ENTER);
    browser.wait_for("query_wait_timeout is 7s until the file is read again");
    browser.picture("settings-light");
    // Why somebody goes where.
    browser.click("nav a", "Explain");
    browser.wait_for("Where does somebody go");
    browser.write("input", "user", "ann");
    browser.keys(ENTER);
    browser.wait_for("ann goes to prod");
    browser.wait_for("environment = \"prod\" from group analysts");
    browser.write("input", "environment", "nowhere");
    browser.keys(ENTER);
    browser.wait_for("is refused (28000)");
    browser.picture("explain-light");
    // A plan of what is pasted, and its application.
    browser.click("nav a", "Plan and apply");
    browser.wait_for("Tables of a configuration");
    let pasted = "[groups.analysts]\nattributes = { environment = \"dev\" }\n";
    browser.write("textarea", "", pasted);
    assert_eq!(
        browser.run(
            "return [...document.querySelectorAll('button')].find(b => b.textContent === 'Apply').disabled"
        ),
        json!(true)
    );
    browser.click("button", "Plan");
    browser.wait_for("ann on warehouse");
    browser.picture("plan-light");
    assert_eq!(api.get("/generations").ok()["generations"][0]["number"], json!(2), "what was set");
    browser.click("button", "Apply");
    browser.wait_for("Applied: generation 3 is in force.");
    assert_eq!(there.get_mut("ann").unwrap().next().unwrap().field('C'), "57P01");
    browser.write("textarea", "", "[groups.analysts]\nattribute = 1\n");
    browser.click("button", "Plan");
    browser.wait_for("unknown key `attribute`");
    assert!(!browser.text().contains("ann on warehouse"), "an older plan stands beside the error");
    // The text is there again after a look elsewhere; and whatever was asked before does not show there.
    let broken = browser.run("return document.querySelector('textarea').value");
    browser.run("window.slow = window.fetch; window.fetch = async (...a) => { const r = await slow(...a); if (String(a[0]).includes('generations')) await new Promise(d => setTimeout(d, 1500)); return r; }");
    browser.click("nav a", "Generations");
    browser.click("nav a", "Pools");
    browser.wait_for("transactions a second");
    std::thread::sleep(Duration::from_millis(1800));
    assert!(browser.text().contains("transactions a second") && !browser.text().contains("Compare"));
    browser.run("window.fetch = window.slow");
    browser.click("nav a", "Plan and apply");
    browser.wait_for("Tables of a configuration");
    assert_eq!(browser.run("return document.querySelector('textarea').value"), broken);
    browser.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Load what is in force').focus()");
    browser.keys(ENTER);
    eventually("it is loaded", || {
        browser
            .run("return document.querySelector('textarea').value")
            .as_str()
            .unwrap()
            .contains("password = \"***\"")
    });
    assert_eq!(browser.focus(), "Load what is in force");
    // What was changed, and back.
    browser.click("nav a", "Generations");
    browser.wait_for("token ops");
    browser.click("button", "Compare");
    browser.wait_for("- attributes = { environment = \"prod\" }");
    browser.wait_for("+ attributes = { environment = \"dev\" }");
    browser.wait_for("What going back would change");
    browser.picture("generations-light");
    browser.click("button", "Go back to generation 2");
    browser.click("button", "Really go back?");
    browser.wait_for("Generation 4 is in force");
    assert!(api.text().contains("[groups.analysts]\nattributes = { environment = \"prod\" }"));
    // Who has done all that.
    browser.click("nav a", "Audit");
    browser.write("input", "event", "api");
    browser.write("input", "q", "rollback POST");
    browser.keys(ENTER);
    browser.wait_for("2 found");
    browser.picture("audit-light");
    // In a narrow window nothing is cut off: every part fits, and what is wide can be scrolled by itself.
    browser.size(380, 800);
    for (title, sign) in [
        ("Routes", "Who goes where"),
        ("Pools", "transactions a second"),
        ("Sessions", " found"),
        ("Grants", "Access for a while"),
        ("Settings", "needs a restart"),
        ("Explain", "Where does"),
        ("Errors", "57P01"),
        ("Users", " found"),
        ("Groups", " found"),
        ("Attributes", " found"),
        ("Connections", " found"),
        ("Tokens", "yours"),
        ("Doctor", "Examines what"),
        ("Plan and apply", "Tables of"),
        ("Generations", "token ops"),
        ("Audit", "found"),
    ] {
        browser.click("nav a", title);
        browser.wait_for(sign);
        let wide = browser.run("return document.documentElement.scrollWidth").as_u64().unwrap();
        assert!(wide <= 380, "{title} is {wide} wide");
        assert!(!browser.text().contains("null") && !browser.text().contains("undefined"), "{title}");
        browser.picture(&format!("narrow-{}", title.split(' ').next().unwrap().to_lowercase()));
    }
    browser.colours("dark");
    browser.click("nav a", "Sessions");
    browser.wait_for(" found");
    browser.picture("narrow-sessions-dark");
    // Nothing of what users are called was ever taken for markup, and nothing was refused by the policy.
    assert_eq!(browser.run("return [window.pwned ?? null, document.images.length, document.scripts.length, document.querySelectorAll('[onclick], b[onclick]').length]"), json!([null, 0, 1, 0]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    // The policy holds: what is put in as markup is refused.
    let refused = browser
        .run("try { document.body.innerHTML = '<img>'; return 'taken' } catch (error) { return error.name }");
    assert_eq!(refused, json!("TypeError"));
    assert!(browser.complaints().iter().all(|complaint| complaint.contains("requires 'TrustedHTML'")));
    // Small, from one address, and the token is nowhere but in the page's memory.
    let loaded = browser.run("return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).map(e => [e.name, e.initiatorType, e.transferSize])");
    let pages: u64 =
        loaded.as_array().unwrap().iter().filter(|e| e[1] != "fetch").map(|e| e[2].as_u64().unwrap()).sum();
    assert!(pages > 10_000 && pages < 100_000, "{pages} bytes: {loaded}");
    let ours = format!("http://127.0.0.1:{}/", api.port);
    assert!(
        loaded.as_array().unwrap().iter().all(|e| {
            let name = e[0].as_str().unwrap();
            name.starts_with(&ours) || name.starts_with("data:")
        }),
        "{loaded}"
    );
    assert_eq!(
        browser.run("return [localStorage.length, sessionStorage.length, document.cookie]"),
        json!([0, 0, ""])
    );
    browser.ask("POST", "/refresh", json!({}));
    browser.wait_for("Sign in");
    // Whoever may only look may plan, and sees nothing that would be refused.
    browser.colours("light");
    browser.size(1280, 900);
    browser.write("input", "token", READER);
    browser.keys(ENTER);
    browser.wait_for("generation 4");
    browser.click("nav a", "Plan and apply");
    browser.write("textarea", "", pasted);
    browser.click("button", "Plan");
    browser.wait_for("ann on warehouse");
    assert!(!browser.text().contains("Apply") && !browser.text().contains("Reload the file"));
    // The document of the API, for people.
    browser.ask("POST", "/url", json!({ "url": format!("http://127.0.0.1:{}/api/v1/docs", api.port) }));
    browser.wait_for("/api/v1/connection-environments/{id}");
    browser.run("document.querySelectorAll('details')[3].open = true");
    browser.picture("docs-light");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// The tasks of an operator's day, with 1,000 users (5,000 under `make soak`): each takes a few clicks.
#[test]
fn fifteen_tasks_take_few_clicks() {
    let users = size(1000, 5000);
    let many: String = (0..users)
        .map(|n| {
            format!(
                "\n[users.u{n:04}]\nauth_type = \"trust\"\nattributes = {{ environment = \"{}\" }}\n",
                if n == 321 { "prod" } else { "dev" }
            )
        })
        .collect();
    let spare = "\n[connections.spare]\nhost = \"127.0.0.1\"\nport = 1\nusername = \"u\"\non_unmatched = \"reject\"\n";
    let config = warehouse("audit_file = \"audit.jsonl\"", "", "");
    let api = Managed::start(&(config.clone() + spare + &many));
    let login = |user: &str, database: &str| {
        Raw::login_with(api.pgusher.address(), 0x0003_0000, &[("user", user), ("database", database)])
    };
    let sessions: Vec<Raw> = (0..size(200, 2000)).map(|n| login(&format!("u{n:04}"), "warehouse")).collect();
    let browser = Browser::start();
    browser.ask("POST", "/url", json!({ "url": format!("http://127.0.0.1:{}/", api.port) }));
    browser.write("input", "token", ADMIN);
    browser.keys(ENTER);
    browser.wait_for(&format!("{} sessions", sessions.len()));
    let mut taken = Vec::new();
    let mut task = |name: &'static str, most: usize, steps: &dyn Fn()| {
        browser.clicks.set(0);
        let began = Instant::now();
        steps();
        taken.push(format!(
            "{name}: {} of {most}, {:.1} s",
            browser.clicks.get(),
            began.elapsed().as_secs_f64()
        ));
        assert!(browser.clicks.get() <= most, "{taken:?}");
    };
    task("who is where", 1, &|| {
        browser.click("nav a", "Sessions");
        browser.wait_for(&format!("{} found", sessions.len()));
        browser.write("input", "q", "u0007");
        browser.wait_for("1 found");
    });
    task("why", 2, &|| {
        browser.click("nav a", "Explain");
        browser.write("input", "user", "u0321");
        browser.write("input", "database", "warehouse");
        browser.click("button", "Explain");
        browser.wait_for("u0321 goes to prod");
    });
    task("move a user", 4, &|| {
        browser.click("nav a", "Users");
        browser.wait_for(&format!("{} found, 1 to 50 shown", users + 5));
        browser.write("input", "q", "u0321");
        browser.wait_for("1 found");
        browser.click("button", "Change");
        browser.write("textarea", "attributes", "environment = dev");
        browser.click("form.card button", "Plan");
        browser.wait_for("u0321 on warehouse");
        browser.picture("users-plan");
        browser.click("button", "Apply");
        browser.wait_for("Done: generation 2 is in force.");
    });
    assert!(
        api.text().contains("[users.u0321]\nauth_type = \"trust\"\nattributes = { environment = \"dev\" }")
    );
    let pasted = "[groups.analysts]\nattributes = { environment = \"prod\" }\n";
    task("plan", 2, &|| {
        browser.click("nav a", "Plan and apply");
        browser.write("textarea", "", pasted);
        browser.click("button", "Plan");
        browser.wait_for("What would change");
    });
    task("apply", 3, &|| {
        browser.click("button", "Apply");
        browser.wait_for("generation 3 is in force");
    });
    task("roll back", 4, &|| {
        browser.click("nav a", "Generations");
        browser.click("button", "Compare");
        browser.wait_for("What going back would change");
        browser.click("button", "Go back to generation 2");
        browser.click("button", "Really go back?");
        browser.wait_for("Generation 4 is in force");
    });
    task("grant", 4, &|| {
        browser.click("nav a", "Grants");
        browser.write("input", "user", "u0009");
        browser.write("input", "environment", "prod");
        browser.write("input", "reason", "INC-9");
        browser.click("button", "Grant");
        browser.wait_for("Granted until");
    });
    task("end a session", 3, &|| {
        browser.click("nav a", "Sessions");
        browser.write("input", "q", "u0003");
        browser.wait_for("1 found");
        browser.click("button", "End");
        browser.click("button", "Really end?");
        browser.wait_for("will end");
    });
    task("search the audit", 3, &|| {
        browser.click("nav a", "Audit");
        browser.write("input", "user", "u0005");
        browser.click("button", "Search");
        browser.wait_for("2 found");
    });
    task("slow pool, who waits", 1, &|| {
        browser.click("nav a", "Pools");
        browser.wait_for("those in trouble first");
        browser.wait_for("longest wait");
    });
    task("rotate a token", 3, &|| {
        browser.click("nav a", "Tokens");
        browser.click("button", "Rotate");
        browser.click("button", "Really replace it now?");
        browser.wait_for("Copy it now");
        browser.picture("tokens");
    });
    task("drain", 3, &|| {
        browser.click("nav a", "Pools");
        browser.click("button", "Drain prod");
        browser.click("button", "Refuse logins to prod everywhere, and end its sessions?");
        browser.wait_for("drained");
    });
    task("add an environment", 6, &|| {
        browser.click("nav a", "Connections");
        browser.write("input", "q", "127.0.0.1 dev");
        browser.wait_for("1 found");
        browser.click("button", "Change");
        browser.find("input", "Name of prod");
        browser.picture("connection-form");
        browser.write("input", "Connection of the new environment", "spare");
        browser.click("button", "Add environment");
        browser.wait_for("What would change");
        browser.picture("environment-plan");
        browser.click("button", "Apply");
        browser.write("input", "Name of spare", "staging");
        browser.write("input", "Values of spare", "staging");
        // The row's own button, and not that of the form.
        browser.clicks.set(browser.clicks.get() + 1);
        browser.run("[...document.querySelectorAll('tr')].find(row => row.querySelector('[aria-label=\"Name of spare\"]')).querySelector('button').click()");
        browser.wait_for("What would change");
        browser.click("button", "Apply");
        browser.wait_for("staging: staging");
    });
    task("errors", 1, &|| {
        let mut raw = Raw::connect(api.pgusher.address());
        raw.send(&startup(0x0003_0000, &[("user", "u0001"), ("database", "nowhere")]));
        while raw.next().is_some() {}
        browser.click("nav a", "Errors");
        browser.wait_for("3D000");
        browser.picture("errors");
    });
    println!("{}", taken.join("\n"));
    browser.click("nav a", "Doctor");
    browser.click("button", "Examine");
    browser.wait_for("connection warehouse_prod");
    browser.wait_for("error");
    browser.picture("doctor");
    // An empty field means nobody, and a number that is none is refused; neither changes anything.
    let before = api.text();
    browser.click("nav a", "Connections");
    browser.write("input", "q", "127.0.0.1 dev");
    browser.wait_for("1 found");
    browser.click("button", "Change");
    browser.click("button", "Add environment");
    browser.wait_for("There is no connection .");
    browser.write("input", "poolSize", "2O");
    browser.click("form.card button", "Plan");
    browser.wait_for("poolSize: 2O is not a whole number.");
    // A plan is of what stands in the form.
    browser.write("input", "poolSize", "21");
    browser.click("form.card button", "Plan");
    browser.wait_for("What would change");
    browser.write("input", "poolSize", "22");
    assert!(!browser.text().contains("What would change"));
    assert_eq!(api.text(), before);
    // What is wrong is said where it was written, and nothing has changed.
    browser.click("nav a", "Users");
    browser.click("button", "New user");
    browser.write("input", "name", "u0001");
    browser.click("form.card button", "Plan");
    browser.wait_for("User with name u0001 already exists");
    browser.click("button", "Close");
    browser.write("input", "q", "u0002");
    browser.wait_for("1 found");
    browser.click("button", "Delete");
    browser.wait_for("What would change");
    browser.click("button", "Delete u0002");
    browser.click("button", "Really delete u0002?");
    browser.wait_for("0 found");
    assert!(!api.text().contains("[users.u0002]"));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

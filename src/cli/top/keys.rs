//! The keys, one by one.

use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// How soon the reading of keys ends when nobody wants them any more.
const KEYS_WAIT: Duration = Duration::from_millis(100);
/// Keys that may wait to be seen to.
const KEYS_MAX: usize = 16;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Press {
    /// To end.
    Quit,
    /// The pool above.
    Up,
    /// The pool below.
    Down,
    /// The next meter.
    Meter,
    /// To stop asking, or go on.
    Pause,
    /// Nothing but to be drawn anew: the window has another size.
    Resized,
}

/// The keys as they are pressed. Without a keyboard there are none; signals end the command all the same.
///
/// They are read in a thread that nobody waits for: crossterm reads a terminal that is gone for ever.
pub(super) fn presses() -> mpsc::Receiver<Press> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match event::poll(KEYS_WAIT) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) => return,
            }
            let Ok(event) = event::read() else { return };
            if press(&event).is_some_and(|press| sender.blocking_send(press).is_err()) {
                return;
            }
        }
    });
    receiver
}

fn press(event: &Event) -> Option<Press> {
    let key = match event {
        Event::Resize(..) => return Some(Press::Resized),
        Event::Key(KeyEvent { kind: KeyEventKind::Release, .. }) => return None,
        Event::Key(key) => key,
        _ => return None,
    };
    // In raw mode this is no signal.
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Press::Quit);
    }
    Some(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Press::Quit,
        KeyCode::Up | KeyCode::Char('k') => Press::Up,
        KeyCode::Down | KeyCode::Char('j') => Press::Down,
        KeyCode::Tab | KeyCode::Char('m') => Press::Meter,
        KeyCode::Char('p') => Press::Pause,
        _ => return None,
    })
}

//! Two seats on one machine: demos, test runs and a user's own etcd do not collide, and what a killed one leaves is
//! cleaned up by the next.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tidegate::sim::Etcd;
use tidegate::sim::process::Process;
use tidegate::sim::seat::{LOCK, MARK, Seat, Swept};

use crate::world::{PATIENCE, eventually, tidegate};

/// A child of the test's own, killed and reaped on drop.
struct Sleeper(Child);

impl Sleeper {
    /// Sleeps with this mark in its environment.
    fn marked(mark: &str) -> Self {
        Self(Command::new("sleep").arg("60").env(MARK, mark).spawn().expect("sleep runs"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("a child").is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A seat's folder made by hand, with a lock that nobody holds.
fn abandoned(temp: &Path, name: &str) -> PathBuf {
    let path = temp.join(name);
    fs::DirBuilder::new().mode(0o700).create(&path).expect("a folder");
    File::create(path.join(LOCK)).expect("a lock file");
    fs::create_dir_all(path.join("etcd/member")).expect("a folder in it");
    fs::write(path.join("etcd/member/data"), "data").expect("a file in it");
    path
}

#[test]
fn what_a_dead_owner_left_is_killed_and_removed_and_a_living_ones_is_not() {
    let temp = tempfile::tempdir().expect("a folder");
    let neighbour = Seat::take_in(temp.path()).expect("a seat");
    let neighbours_name = neighbour.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let mut neighbours_child = Sleeper::marked(&neighbours_name);

    let dead = "tidegate-4194305-00000000deadbeef";
    let left = abandoned(temp.path(), dead);
    let mut first = Sleeper::marked(dead);
    let mut second = Sleeper::marked(&format!("{dead}/tidegate-4194304-00000000deadbeef"));
    let mut of_no_folder = Sleeper::marked("tidegate-4194305-00000000deadbee0");
    let mut longer = Sleeper::marked(&format!("{dead}0"));

    let seat = Seat::take_in(temp.path()).expect("a seat");
    assert_eq!(seat.swept(), Swept { processes: 2, folders: 1 });
    assert_eq!(seat.swept().to_string(), "cleaned up after an earlier run that was killed: 2 processes, 1 folder");
    assert!(!left.exists());
    for child in [&mut first, &mut second] {
        assert_eq!(child.0.wait().expect("a child").signal(), Some(9));
    }
    assert!(neighbour.path().join(LOCK).is_file());
    for child in [&mut neighbours_child, &mut of_no_folder, &mut longer] {
        assert!(child.is_running());
    }

    let again = Seat::take_in(temp.path()).expect("a seat");
    assert!(again.swept().is_nothing(), "{}", again.swept());
    drop((seat, again));
    let names: Vec<_> = fs::read_dir(temp.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, [neighbours_name.as_str()]);
}

#[test]
fn what_is_not_provably_a_leftover_of_the_user_s_own_is_left_alone() {
    let temp = tempfile::tempdir().expect("a folder");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let target = abandoned(elsewhere.path(), "tidegate-1-0000000000000001");
    symlink(&target, temp.path().join("tidegate-1-0000000000000001")).expect("a link");

    let open = abandoned(temp.path(), "tidegate-1-0000000000000002");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("its mode");
    let without_lock = abandoned(temp.path(), "tidegate-1-0000000000000003");
    fs::remove_file(without_lock.join(LOCK)).expect("removed");
    let lock_is_a_link = abandoned(temp.path(), "tidegate-1-0000000000000004");
    fs::remove_file(lock_is_a_link.join(LOCK)).expect("removed");
    symlink(target.join(LOCK), lock_is_a_link.join(LOCK)).expect("a link");
    let names = ["tidegate-notes", "tidegate-1-2", "tidegate-demo-0000000000000005", "tidegate--0000000000000006"];
    let others = names.map(|name| abandoned(temp.path(), name));
    fs::write(temp.path().join("tidegate-1-0000000000000007"), "a file").expect("written");
    let mut marked = Sleeper::marked("tidegate-1-0000000000000002");

    let before = fs::read_dir(temp.path()).expect("a folder").count();
    let seat = Seat::take_in(temp.path()).expect("a seat");
    assert!(seat.swept().is_nothing(), "{}", seat.swept());
    assert!(marked.is_running());
    drop(seat);
    assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), before);
    for folder in [target, open, without_lock, lock_is_a_link].iter().chain(&others) {
        assert!(folder.join("etcd/member/data").is_file(), "{}", folder.display());
    }
}

#[test]
fn a_seat_is_one_a_process_closed_to_others_and_goes_with_its_last_user() {
    let seat = Seat::take().expect("a seat");
    assert_eq!(seat.path(), Seat::take().expect("the same").path());
    assert_eq!(fs::metadata(seat.path()).expect("a folder").permissions().mode() & 0o777, 0o700);
    let (one, two) = (seat.folder("logs").expect("a folder"), seat.folder("logs").expect("another"));
    assert!(one != two && one.is_dir() && two.is_dir() && two.starts_with(seat.path()));

    // Other tests hold the process's own; this one is nobody else's.
    let temp = tempfile::tempdir().expect("a folder");
    let alone = Seat::take_in(temp.path()).expect("a seat");
    let (path, clone) = (alone.path().to_owned(), alone.clone());
    drop(alone);
    assert!(path.is_dir());
    drop(clone);
    assert!(!path.exists());
}

#[test]
fn seats_taken_and_given_up_at_once_never_sweep_one_another() {
    let temp = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let seat = Seat::take_in(temp.path()).expect("a seat");
                    assert!(seat.swept().is_nothing(), "{}", seat.swept());
                    fs::write(seat.path().join("mine"), "mine").expect("it is still there");
                }
            });
        }
    });
    assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 0);
}

/// Process ids of a seat's children; a zombie has no mark.
fn marked_with(name: &str) -> Vec<u32> {
    let is_marked = |pid: &u32| {
        let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split('\0').any(|entry| entry.starts_with(MARK) && entry.ends_with(name))
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.retain(is_marked);
    pids.sort_unstable();
    pids
}

/// A demo with its seat in `temp`, in the shell of somebody who has an etcd and a proxy of his own.
async fn demo(temp: &Path) -> (Process, String) {
    let mut command = tidegate(&["demo", "--svg"]);
    command.arg(temp.join("run.svg"));
    command.env("TMPDIR", temp).env("ETCD_NAME", "mine").env("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:2379");
    command.env("ETCDCTL_ENDPOINTS", "http://127.0.0.1:2379");
    for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        command.env(proxy, "http://127.0.0.1:9");
    }
    let mut demo = Process::spawn("demo", command, None).expect("the demo starts");
    demo.wait_for_line(|line| line.contains("ramp-up"), PATIENCE).await.expect("it runs");
    let start = format!("tidegate-{}-", demo.pid());
    let entries = fs::read_dir(temp).expect("a folder").flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let name = names.find(|name| name.starts_with(&start)).expect("a seat's folder");
    (demo, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_killed_with_kill_9_is_cleaned_up_by_the_next_and_a_living_neighbour_is_not() {
    let seat = Seat::take().expect("a seat");
    let temp = seat.folder("temp").expect("a folder");
    let (mut neighbour, neighbours_seat) = demo(&temp).await;
    let (mut killed, killed_seat) = demo(&temp).await;
    let neighbours_children = marked_with(&neighbours_seat);
    let orphans = marked_with(&killed_seat);
    assert!(orphans.len() >= 5, "etcd, emulator, controller and two services: {orphans:?}");
    killed.kill().expect("kill -9");
    assert!(!marked_with(&killed_seat).is_empty(), "its children have groups of their own and live on");
    assert!(temp.join(&killed_seat).is_dir());

    let (mut next, nexts_seat) = demo(&temp).await;
    assert_eq!(marked_with(&killed_seat), Vec::<u32>::new());
    assert!(!temp.join(&killed_seat).exists());
    assert_eq!(marked_with(&neighbours_seat), neighbours_children);
    assert!(temp.join(&neighbours_seat).is_dir());
    for (demo, seat) in [(&mut neighbour, &neighbours_seat), (&mut next, &nexts_seat)] {
        demo.terminate().await.expect("it ends");
        assert_eq!(marked_with(seat), Vec::<u32>::new());
    }
}

#[test]
fn a_seat_that_is_given_up_takes_with_it_what_still_runs_in_its_name() {
    let temp = tempfile::tempdir().expect("a folder");
    let seat = Seat::take_in(temp.path()).expect("a seat");
    let mut command = std::process::Command::new("sleep");
    seat.mark(command.arg("600"));
    let mut child = command.spawn().expect("it starts");
    let name = seat.path().file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    // A process that is just being started has no environment yet.
    while marked_with(&name).is_empty() {
        std::thread::yield_now();
    }
    drop(seat);
    assert!(!child.wait().expect("it has ended").success(), "it was killed");
    assert_eq!(fs::read_dir(temp.path()).expect("a folder").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_etcd_is_not_mistaken_for_whoever_took_its_port() {
    let mut etcd = Etcd::start().await.expect("etcd starts");
    etcd.kill().expect("kill -9");
    let addr = etcd.endpoint().trim_start_matches("http://").to_owned();
    let other = TcpListener::bind(&addr).expect("the port is free");
    // It says to every question that it is healthy.
    let answering = std::thread::spawn(move || {
        for stream in other.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 1_024];
            match stream.read(&mut request) {
                Ok(n) if request[..n].starts_with(b"over") => return,
                _ => {}
            }
            let text = r#"{"health":"true"}"#;
            let length = text.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
        }
    });
    let error = etcd.restart().await.expect_err("another one answers there");
    assert!(error.to_string().contains("address already in use"), "{error}");
    TcpStream::connect(&addr).and_then(|mut stream| stream.write_all(b"over")).expect("it is told to end");
    answering.join().expect("it ended");
    etcd.restart().await.expect("etcd comes back");
    eventually("it is healthy", async || etcd.is_healthy().await.then_some(())).await;
}

#[test]
fn a_seat_that_cannot_be_made_is_an_error() {
    let temp = tempfile::tempdir().expect("a folder");
    let error = Seat::take_in(&temp.path().join("missing")).expect_err("no such folder");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
